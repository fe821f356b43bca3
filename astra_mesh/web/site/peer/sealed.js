// The sealed channel between a tab and a peer, without I/O: the peer that serves the tab relays what they say
// and can neither read nor alter it unnoticed (docs/browser-peer.md; astra_mesh/mesh/sealed.py).

import { chacha20poly1305 } from "../vendor/noble/ciphers/chacha.js";
import { hkdf } from "../vendor/noble/hashes/hkdf.js";
import { sha256 } from "../vendor/noble/hashes/sha2.js";
import { ProtocolError } from "./errors.js";
import { agree, joined, makeKey, peerId, publicPoint, same, sign, SIGNATURE_BYTES, verify } from "./identity.js";

const ascii = (text) => new TextEncoder().encode(text);
const MAGIC = ascii("amt1");
const ABOUT = ascii("astra-mesh tab 1");
const ANSWER = ascii("astra-mesh tab 1 answer");
const OPEN = ascii("astra-mesh tab 1 open");
const POINT_BYTES = 65;
const CERTIFICATE_AT = MAGIC.length + POINT_BYTES + 2;

/** What both ends have after the handshake: frames are sealed and opened in order. */
export class Channel {
  #sending;
  #receiving;
  #sent = 0n;
  #received = 0n;

  constructor(sending, receiving) {
    this.#sending = sending;
    this.#receiving = receiving;
  }

  /** The next message to the other end. */
  seal(frame) {
    return chacha20poly1305(this.#sending, nonce(this.#sent++)).encrypt(frame);
  }

  /** The frame in the next message; ProtocolError if it was altered, left out, repeated or moved. */
  open(message) {
    let frame;
    try {
      frame = chacha20poly1305(this.#receiving, nonce(this.#received)).decrypt(message);
    } catch {
      throw new ProtocolError("a sealed message that was altered on its way");
    }
    this.#received++;
    return frame;
  }
}

/** The end that begins: send `first`, give the answer to `finish`. `me` is { certificate, secret }. */
export class Opener {
  #me;
  #expected;
  #ephemeral;

  constructor(me, expected, ephemeral = makeKey()) {
    this.#me = me;
    this.#expected = expected;
    this.#ephemeral = ephemeral;
    this.first = introduction(ephemeral.point, me.certificate);
  }

  /** The third message, to be sent, and the channel. ProtocolError if another peer answers, or something was altered. */
  finish(second) {
    const answer = second.slice(0, Math.max(0, second.length - SIGNATURE_BYTES));
    const { point, certificate } = readIntroduction(answer);
    const found = peerId(certificate);
    if (found !== this.#expected) throw new ProtocolError(`peer ${found.slice(0, 8)} answers instead of ${this.#expected.slice(0, 8)}`);
    check(certificate, second.slice(answer.length), answered(this.first, answer));
    const [sending, receiving] = keys(this.#ephemeral, point, this.first, second);
    const third = sign(this.#me.secret, opened(this.first, second));
    return { third, channel: new Channel(sending, receiving) };
  }
}

/** The end that is spoken to: send `second`, give the answer to `finish`. `certificate` is to be judged first. */
export class Answerer {
  #opened;
  #channel;

  constructor(me, first, ephemeral = makeKey()) {
    const { point, certificate } = readIntroduction(first);
    this.certificate = certificate;
    const answer = introduction(ephemeral.point, me.certificate);
    this.second = joined(answer, sign(me.secret, answered(first, answer)));
    this.#opened = opened(first, this.second);
    const [receiving, sending] = keys(ephemeral, point, first, this.second);
    this.#channel = new Channel(sending, receiving);
  }

  /** The channel; ProtocolError unless whoever speaks has the certificate's key. */
  finish(third) {
    check(this.certificate, third, this.#opened);
    return this.#channel;
  }
}

// --- messages -------------------------------------------------------------------------------------

function introduction(point, certificate) {
  return joined(MAGIC, point, [certificate.length >> 8, certificate.length & 0xff], certificate);
}

function readIntroduction(message) {
  if (!same(message.slice(0, MAGIC.length), MAGIC)) throw new ProtocolError("a channel that begins with something else, or of another version");
  const certificate = message.slice(CERTIFICATE_AT);
  const size = 256 * message[CERTIFICATE_AT - 2] + message[CERTIFICATE_AT - 1];
  if (certificate.length !== size) throw new ProtocolError("a channel that begins with a message of a wrong length");
  publicPoint(certificate);
  return { point: message.slice(MAGIC.length, MAGIC.length + POINT_BYTES), certificate };
}

const answered = (first, answer) => joined(ANSWER, sha256(joined(first, answer)));
const opened = (first, second) => joined(OPEN, sha256(joined(first, second)));

function check(certificate, signature, data) {
  if (!verify(certificate, signature, data)) throw new ProtocolError("a signature that is not by the key of the certificate");
}

/** From the opener to the answerer, and back. */
function keys(mine, theirs, first, second) {
  const both = hkdf(sha256, agree(mine.secret, theirs), sha256(joined(first, second)), ABOUT, 64);
  return [both.slice(0, 32), both.slice(32)];
}

function nonce(counter) {
  const made = new Uint8Array(12);
  new DataView(made.buffer).setBigUint64(4, counter);
  return made;
}
