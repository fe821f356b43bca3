// The one WebSocket of a tab to the peer that serves it (its host): joins, carries a channel for each other
// peer, and comes back by itself. Text messages are JSON, binary ones `channel (4 bytes) || payload`.

import { base64, makeKey, peerId, unbase64 } from "./identity.js";
import { BACKOFF_CAP_S, BACKOFF_FIRST_S, HELLO_TIMEOUT_S, KNOWN_S, UNSENT_BYTES } from "./limits.js";
import { sanitise } from "./messages.js";

const VERSION = 1; // of what tab and host say
const HEAD_BYTES = 4;
const SOON_S = 2; // between two tries for KNOWN_S after a loss: a peer that is started again is back within seconds
const LEAVE_MS = 300; // for the goodbyes
const RENEW_MS = 60_000; // before the certificate ends

/** One way to one peer. Whoever opened it sets `onmessage(bytes)` and `onclosed(why)`. */
class Pipe {
  onmessage = () => {};
  onclosed = () => {};
  isOpen = true;
  #mux;

  constructor(mux, number, peer) {
    this.#mux = mux;
    this.number = number;
    this.peer = peer;
  }

  /** Whether the socket takes more; else ask again soon. */
  get hasRoom() {
    return this.#mux.unsentBytes < UNSENT_BYTES;
  }

  send(payload) {
    if (!this.isOpen) return;
    const message = new Uint8Array(HEAD_BYTES + payload.length);
    new DataView(message.buffer).setUint32(0, this.number);
    message.set(payload, HEAD_BYTES);
    this.#mux.write(message);
  }

  close() {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.#mux.closePipe(this);
  }

  /** The other end, or the way to it, is gone. */
  gone(why) {
    if (!this.isOpen) return;
    this.isOpen = false;
    this.onclosed(why);
  }
}

export class Mux {
  me = null; // once welcome: { id, certificate, secret }
  looks = 0; // since the host's last word, by whoever counts them
  #key = makeKey();
  #makeSocket;
  #name;
  #on;
  #socket = null;
  #pipes = new Map(); // by number
  #next = 1;
  #waitS = BACKOFF_FIRST_S;
  #lostAt = null; // when the host was lost
  #timer = null;
  #left = false;

  /**
   * @param makeSocket  gives a fresh WebSocket to /tab
   * @param name        of this device, for people
   * @param on          welcome({me, host, machine, seal}), peers(list), incoming(pipe), down(why, again: seconds), trying()
   */
  constructor(makeSocket, name, on) {
    this.#makeSocket = makeSocket;
    this.#name = name;
    this.#on = on;
  }

  /** Bytes that the socket holds and has not sent. */
  get unsentBytes() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  /** Whether a try to join is under way. */
  get tries() {
    return this.#socket !== null && this.me === null;
  }

  /** Join; again after every loss, until leave(). */
  start() {
    clearTimeout(this.#timer);
    this.#on.trying();
    const socket = (this.#socket = this.#makeSocket());
    socket.binaryType = "arraybuffer";
    this.#timer = setTimeout(() => this.#lost(socket, "the peer does not answer"), 1000 * HELLO_TIMEOUT_S);
    socket.onopen = () => this.#say({ type: "join", key: base64(this.#key.point), name: this.#name });
    socket.onmessage = (event) => this.#received(socket, event.data);
    socket.onclose = (event) => this.#lost(socket, event.reason || "the connection to the peer is gone");
  }

  /** Be gone for good, once what was written is out. */
  leave() {
    this.#left = true;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#drop("this device left");
    setTimeout(() => socket?.close(1000, "leaving"), LEAVE_MS);
  }

  /** Be gone until hurry(), once what was written is out. */
  rest(why) {
    if (this.#left) return;
    clearTimeout(this.#timer);
    this.#drop(why);
  }

  /** The device's network is back, or somebody looks at it: do not wait for the next try. */
  hurry() {
    if (this.#left || this.#socket !== null) return;
    this.#waitS = BACKOFF_FIRST_S;
    this.start();
  }

  /** The host says nothing any more: give the socket up and join anew. */
  giveUp(why) {
    if (this.#socket && !this.#left) this.#lost(this.#socket, why);
  }

  /** A new way to a peer. */
  open(peer) {
    const pipe = new Pipe(this, this.#next, peer);
    this.#next += 2; // the host's are even
    this.#pipes.set(pipe.number, pipe);
    this.#say({ type: "open", channel: pipe.number, to: peer });
    return pipe;
  }

  closePipe(pipe) {
    if (this.#pipes.delete(pipe.number)) this.#say({ type: "close", channel: pipe.number });
  }

  write(message) {
    if (this.#socket?.readyState === 1) this.#socket.send(message);
  }

  #say(message) {
    this.write(JSON.stringify(message));
  }

  #received(socket, data) {
    if (socket !== this.#socket) return;
    this.looks = 0;
    if (typeof data !== "string") {
      if (data.byteLength < HEAD_BYTES) return;
      const number = new DataView(data).getUint32(0);
      this.#pipes.get(number)?.onmessage(new Uint8Array(data, HEAD_BYTES)); // of a closed one: under way
      return;
    }
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return this.giveUp("the peer sent what is no JSON");
    }
    this.#heard(message);
  }

  #heard(message) {
    if (message.type === "welcome") this.#welcome(message);
    else if (message.type === "peers") this.#on.peers(message.peers);
    else if (message.type === "open") this.#incoming(message.channel, message.from);
    else if (message.type === "closed") {
      const pipe = this.#pipes.get(message.channel);
      this.#pipes.delete(message.channel);
      pipe?.gone(sanitise(String(message.why ?? "")));
    } else if (message.type === "refused") this.giveUp(sanitise(String(message.why ?? "")));
  }

  #welcome({ version, certificate, peer, host, machine = "", until, seal }) {
    const der = unbase64(certificate);
    if (version !== VERSION) return this.giveUp("the peer runs another version: load this page again");
    if (peerId(der) !== peer) return this.giveUp("the peer gave a certificate that does not fit its id");
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.giveUp("its certificate is renewed"), 1000 * until - Date.now() - RENEW_MS);
    this.#waitS = BACKOFF_FIRST_S;
    this.#lostAt = null;
    this.me = { id: peer, certificate: der, secret: this.#key.secret };
    this.#on.welcome({ me: this.me, host, machine, seal: unbase64(seal) });
  }

  #incoming(number, from) {
    const pipe = new Pipe(this, number, from);
    this.#pipes.set(number, pipe);
    this.#on.incoming(pipe);
  }

  #lost(socket, why) {
    if (socket !== this.#socket || this.#left) return;
    this.#drop(why);
    this.#again(why);
  }

  #drop(why) {
    const socket = this.#socket;
    this.#socket = null;
    this.me = null;
    if (socket) socket.onopen = socket.onmessage = socket.onclose = socket.onerror = null;
    const pipes = [...this.#pipes.values()];
    this.#pipes.clear();
    for (const pipe of pipes) pipe.gone(why);
    if (socket && !this.#left) socket.close();
  }

  #again(why) {
    clearTimeout(this.#timer);
    this.#drop(why);
    this.#timer = setTimeout(() => this.start(), 1000 * this.#waitS);
    this.#on.down(why, this.#waitS);
    this.#lostAt ??= Date.now();
    const cap = Date.now() - this.#lostAt < 1000 * KNOWN_S ? SOON_S : BACKOFF_CAP_S;
    this.#waitS = Math.min(2 * this.#waitS, cap);
  }
}
