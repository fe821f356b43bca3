// A host for a tab, without sockets: what /tab does, a coordinator at the end of the tab's first channel, and another peer.

import { EventEmitter, once } from "node:events";

import { makeKey, peerId, unbase64 } from "../../astra_mesh/web/site/peer/identity.js";
import { decode, encode, make } from "../../astra_mesh/web/site/peer/messages.js";
import { Answerer } from "../../astra_mesh/web/site/peer/sealed.js";
import { bytes, vectors } from "./helpers.js";

const { opener, answerer } = vectors("sealed.json").handshake;
const identity = ({ certificate, key, id }) => ({ certificate: bytes(certificate), secret: bytes(key), id });
export const HOST = identity(answerer);
export const OTHER = identity(opener);
export const SEAL = makeKey(); // for what is asked of the host over HTTP

/** A certificate that holds a key; nobody here asks who signed it. */
export function certificateFor(point) {
  const made = bytes(opener.certificate);
  const at = Buffer.from(made).indexOf(Buffer.from([0x03, 0x42, 0x00, 0x04])) + 3;
  made.set(point, at);
  return made;
}

/** The tab's end of a WebSocket. */
class FakeSocket {
  readyState = 0;
  bufferedAmount = 0;

  constructor(host) {
    this.host = host;
    queueMicrotask(() => {
      if (this.readyState !== 0) return;
      this.readyState = 1;
      this.onopen?.();
    });
  }

  send(data) {
    queueMicrotask(() => this.host.heard(this, data));
  }

  close(code, reason = "") {
    if (this.readyState === 3) return;
    this.readyState = 3;
    queueMicrotask(() => this.onclose?.({ reason }));
  }

  /** The host says something. */
  hear(data) {
    const copy = typeof data === "string" ? data : data.slice().buffer;
    queueMicrotask(() => this.readyState === 1 && this.onmessage?.({ data: copy }));
  }
}

export class FakeHost extends EventEmitter {
  sockets = [];
  tab = null; // id
  texts = []; // JSON messages of the tab
  number = 0; // of the channel to the coordinator
  other = 0; // of that to another peer
  device = null; // that both tell of
  isAway = false; // whether the other peer answers nothing
  #ends = new Map(); // channel -> { me, shaking, channel }
  #inbox = [];

  makeSocket = () => {
    const socket = new FakeSocket(this);
    this.sockets.push(socket);
    return socket;
  };

  get socket() {
    return this.sockets.at(-1);
  }

  say(type, fields) {
    this.socket.hear(JSON.stringify({ type, ...fields }));
  }

  heard(socket, data) {
    if (socket !== this.socket) return;
    if (typeof data === "string") this.#text(JSON.parse(data));
    else this.#binary(data);
  }

  #text(message) {
    this.texts.push(message);
    if (message.type === "join") this.joined(message);
    if (message.type === "open") this.#ends.set(message.channel, { me: message.to === OTHER.id ? OTHER : HOST, shaking: null, channel: null });
    this.emit("text", message);
  }

  /** Overridden by tests that answer otherwise. */
  joined({ key }) {
    const certificate = certificateFor(unbase64(key));
    this.tab = peerId(certificate);
    this.say("welcome", {
      version: 1, peer: this.tab, certificate: Buffer.from(certificate).toString("base64"), until: Math.floor(Date.now() / 1000) + 3600,
      host: { id: HOST.id, name: "host" }, machine: "m1", seal: Buffer.from(SEAL.point).toString("base64"),
    });
    this.say("peers", { peers: [{ id: HOST.id, name: "host", tab: false }] });
  }

  /** Let the tab know of another peer. */
  list() {
    this.say("peers", { peers: [HOST, OTHER].map(({ id }) => ({ id, name: id === HOST.id ? "host" : "other", tab: false })) });
  }

  #binary(data) {
    const number = new DataView(data.buffer, data.byteOffset).getUint32(0);
    const payload = data.slice(4);
    const end = this.#ends.get(number);
    if (end.me === OTHER && this.isAway) return;
    if (end.channel !== null) return this.#frame(decode(end.channel.open(payload)), number);
    if (end.shaking === null) {
      end.shaking = new Answerer(end.me, payload);
      this.#send(number, end.shaking.second);
      return;
    }
    end.channel = end.shaking.finish(payload);
    const name = end.me === HOST ? "host" : "other";
    this[end.me === HOST ? "number" : "other"] = number;
    const { device } = this;
    this.tell(make("Hello", { magic: "astra-mesh", version: 1, peer: end.me.id, name, role: "peer", window_bytes: 1 << 20, device }), number);
  }

  #frame(message, number) {
    if (message.type === "Ping") this.tell(make("Pong", { number: message.number }), number);
    else if (message.type !== "Pong" && message.type !== "Throughput") {
      this.#inbox.push(message);
      this.emit("frame");
    }
  }

  #send(number, payload) {
    const message = Buffer.alloc(4 + payload.length);
    message.writeUInt32BE(number);
    message.set(payload, 4);
    this.socket.hear(new Uint8Array(message));
  }

  /** Send the tab a message, as the coordinator unless the channel is another one's. */
  tell(message, number = this.number) {
    this.#send(number, this.#ends.get(number).channel.seal(encode(message)));
  }

  /** What comes next of one of these types; others are dropped. */
  async next(...types) {
    for (;;) {
      const message = this.#inbox.shift();
      if (!message) await once(this, "frame");
      else if (types.includes(message.type)) return message;
    }
  }
}
