// The first frame of the other end, checked: is this a peer that the tab can talk to? As
// astra_mesh/mesh/greeting.py.

import { ProtocolError, RefusedError, VersionMismatchError } from "./errors.js";
import { decode, helloVersion, PROTOCOL_VERSION, REASONS, sanitise } from "./messages.js";

/** The link is to be refused: a decision, not an error. `error` is what this end reports. */
export class LinkRefusal extends Error {
  constructor(reason, text, error) {
    super(text);
    this.reason = reason;
    this.error = error;
  }
}

/** The first message: a hello, a refusal or a goodbye. LinkRefusal or ProtocolError otherwise. */
export function checkFirst(frame, own, expected) {
  const version = helloVersion(frame);
  if (version !== null && version !== PROTOCOL_VERSION) throw versionRefusal(PROTOCOL_VERSION, version);
  const message = decode(frame);
  if (message.type === "LinkRefused" || message.type === "Goodbye") return message;
  if (message.type !== "Hello") throw new ProtocolError(`${message.type} before the hello`);
  if (message.peer === own.peer) throw new LinkRefusal("self", "", new RefusedError("this address leads back to this peer itself"));
  if (expected !== null && message.peer !== expected) {
    const text = `peer ${message.peer.slice(0, 8)} answers instead of ${expected.slice(0, 8)}`;
    throw new LinkRefusal("wrong-peer", text, new RefusedError(text));
  }
  if (message.role !== "peer") throw new ProtocolError("a client at a tab, which answers none");
  return message;
}

/** Both versions, and which end to update, from the point of view of each reader. */
function versionRefusal(ours, theirs) {
  const sentence = (here, there) =>
    `this device speaks version ${here} of the protocol, the other device ${there}: ` +
    `update ${here < there ? "this device" : "the other device"} to a release with version ${here > there ? here : there}`;
  return new LinkRefusal("protocol-version", sentence(theirs, ours), new VersionMismatchError(sentence(ours, theirs)));
}

/** What this end reports when it is refused. */
export function refusalError(message, who) {
  const text = sanitise(message.text);
  if (message.reason === "protocol-version") return new VersionMismatchError(text || REASONS[message.reason]);
  return new RefusedError(`${who} refused the link: ${explain(message.reason, text)}`);
}

/** The sentence of a reason, with what was added to it. */
export const explain = (reason, text) => (text ? `${REASONS[reason]} (${text})` : REASONS[reason]);
