// One link as a state machine, without I/O and without a clock: frames and the time (seconds) go in, messages
// and frames come out. The same rules as astra_mesh/mesh/session.py, between two peers. Single-use.

import { MeshError, PeerLostError, ProtocolError, RefusedError } from "./errors.js";
import { cost, ORDERED, Outbox, Window } from "./flow.js";
import { checkFirst, explain, LinkRefusal, refusalError } from "./greeting.js";
import * as limits from "./limits.js";
import { decode, encode, make, sanitise } from "./messages.js";
import { Pings } from "./pings.js";
import { RequestTable } from "./requests.js";

/** Where a link stands. */
export const State = {
  FRESH: "fresh", // nothing was queued and nothing is accepted
  GREETING: "greeting", // our hello is queued or sent; theirs has not come
  OPEN: "open", // both hellos are valid and fit together: messages flow
  CLOSING: "closing", // our last word is queued; what comes in is dropped
  CLOSED: "closed", // nothing goes in or out any more; closeError says why
};
const NEXT = {
  fresh: ["greeting", "closed"], greeting: ["open", "closing", "closed"], open: ["closing", "closed"], closing: ["closed"], closed: [],
};
/** Deadlines, seconds (astra_mesh/mesh/timings.py). */
export const TIMINGS = {
  helloS: limits.HELLO_TIMEOUT_S, heartbeatS: limits.HEARTBEAT_S, silenceS: limits.SILENCE_S, lostS: limits.LOST_S, closeS: limits.CLOSE_TIMEOUT_S,
};
// A tab takes shards. It never plans, so nobody answers it, and it decides about no device.
const NOT_FROM_TABS = new Set(["Roster", "Prepare", "Propose", "Token"]);
const NOT_TO_TABS = new Set(["Roster", "Token"]);

export class Session {
  state = State.FRESH;
  peerHello = null; // set from OPEN on
  closeError = null; // null: a goodbye, or still open
  closeReason = null; // of a LinkRefused, sent or received
  silent = false; // nothing was heard for a while; it may come back until it is lost
  receiveBps = null; // bits per second, as the other end measured
  #expected;
  #outbox = new Outbox();
  #window;
  #requests = new RequestTable();
  #pings;
  #pongs = 0; // queued since control was last all written
  #heard = 0; // when the last frame came
  #deadline = Infinity; // of GREETING and CLOSING
  #due = Infinity; // when tick wants to be called

  /**
   * @param hello     what this end says about itself
   * @param expected  id of the peer at the other end, proven by its certificate; null in tests
   */
  constructor(hello, { timings = TIMINGS, expected = null } = {}) {
    this.hello = hello;
    this.timings = timings;
    this.#expected = expected;
    this.#window = new Window(hello.window_bytes);
    this.#pings = new Pings(timings.heartbeatS);
  }

  // --- what the application sees --------------------------------------------------------------------

  /** Smoothed round trip, seconds; null before the first pong. */
  get roundTripS() {
    return this.#pings.roundTripS;
  }

  get leastTripS() {
    return this.#pings.leastTripS;
  }

  /** Bytes of frames that wait, for the socket or for credit. */
  get queuedBytes() {
    return this.#outbox.queuedBytes;
  }

  /** Cost of the data that was received and not consumed. */
  get unconsumedBytes() {
    return this.#window.unconsumed;
  }

  /** Queue the hello. Once, before all else. */
  start(now) {
    this.#move(State.GREETING);
    this.#outbox.putControl(encode(this.hello));
    this.#deadline = now + this.timings.helloS;
    this.#heard = now;
  }

  /**
   * Queue a message; the result is the length of its frame. What belongs to an ended request is dropped in
   * silence. MeshError if the link is over.
   */
  send(message) {
    if (this.state !== State.OPEN) throw this.closeError ?? new PeerLostError("the link is not open");
    if (NOT_FROM_TABS.has(message.type)) throw new ProtocolError(`${message.type} does not go from a tab to this end`);
    const frame = encode(message);
    if (!this.#requests.sending(message)) return 0;
    if (["Cancel", "Fail", "Refuse"].includes(message.type)) this.#outbox.drop(message.request);
    if (ORDERED.has(message.type)) this.#outbox.putData(message.request, frame, message);
    else this.#outbox.putControl(frame);
    if (this.queuedBytes > 2 * limits.SEND_QUEUE_BYTES) this.lost("it does not read what it is sent");
    return frame.length;
  }

  /** Frames to write now, in order; at least one if any may go, then up to `limit` bytes. */
  frames(limit = limits.WRITE_BATCH_BYTES) {
    if (this.state === State.FRESH || this.state === State.CLOSED) return [];
    const frames = this.#outbox.take(limit);
    if (this.#outbox.controlEmpty) {
      this.#pongs = 0;
      if (this.state === State.CLOSING) this.#move(State.CLOSED); // it has no data any more
    }
    return frames;
  }

  /** Give back credit for data (cost() of each message) that is no longer held. */
  consumed(size) {
    const lump = this.#window.consumed(size);
    if (lump && this.state === State.OPEN) this.#outbox.putControl(encode(make("Credit", { size: lump })));
  }

  /** Nothing more is wanted for a request: drop what is queued and what comes late. */
  end(request) {
    this.#requests.end(request);
    this.#outbox.drop(request);
  }

  /** Queue a ping whose Pong is handed up by receive; its number. */
  ping(now, padding = 0) {
    if (this.state !== State.OPEN) throw this.closeError ?? new PeerLostError("the link is not open");
    const ping = this.#pings.probe(now, padding);
    this.#outbox.putControl(encode(ping));
    return ping.number;
  }

  /** Leave: queue the goodbye, drop queued data, accept nothing more. */
  goodbye(text = "") {
    if (this.state === State.FRESH) this.#move(State.CLOSED);
    else if (this.state === State.GREETING || this.state === State.OPEN) this.#lastWord(make("Goodbye", { text: sanitise(text) }));
  }

  /** End the link with a named reason; `error` becomes closeError. */
  refuse(reason, text = "", error = null) {
    if (this.state !== State.GREETING && this.state !== State.OPEN) return;
    const clean = sanitise(text);
    this.closeReason = reason;
    this.closeError = error ?? new RefusedError(`link refused: ${explain(reason, clean)}`);
    this.#lastWord(make("LinkRefused", { reason, text: clean }));
  }

  /** The other end is gone, or the channel is: close without a word. */
  lost(why) {
    if (this.state === State.CLOSED) return;
    if (this.state !== State.CLOSING) this.closeError = new PeerLostError(`lost ${this.#who()}: ${sanitise(why)}`);
    this.#close();
  }

  // --- time -----------------------------------------------------------------------------------------

  /** Do what is due; the result is when to call again at the latest (Infinity: never). */
  tick(now) {
    if (this.state === State.GREETING && now >= this.#deadline) this.lost(`no hello within ${this.timings.helloS} s`);
    else if (this.state === State.CLOSING) {
      this.#deadline = Math.min(this.#deadline, now + this.timings.closeS);
      if (now >= this.#deadline) this.#close();
    } else if (this.state === State.OPEN) this.#beat(now);
    if (this.state === State.OPEN) {
      const endS = this.silent ? this.#lostS : this.timings.silenceS;
      this.#due = Math.min(this.#pings.due(this.#heard), this.#heard + endS);
    } else this.#due = this.state === State.CLOSED ? Infinity : this.#deadline;
    return this.#due;
  }

  /** How long the other end may say nothing before it is lost. */
  get #lostS() {
    return Math.max(this.timings.silenceS, this.timings.lostS);
  }

  /** Ping in silence; give up after too much of it. */
  #beat(now) {
    // This tab stood still (a locked phone): silence so far proves nothing.
    if (now - this.#due > this.timings.heartbeatS) this.#heard = Math.max(this.#heard, now - this.timings.heartbeatS);
    this.silent = now - this.#heard >= this.timings.silenceS;
    if (now - this.#heard >= this.#lostS) this.lost(`nothing heard for ${this.#lostS} s`);
    else if (now >= this.#pings.due(this.#heard)) this.#outbox.putControl(encode(this.#pings.heartbeat(now)));
  }

  // --- receiving ------------------------------------------------------------------------------------

  /** Take a frame; the messages for the application (none or one), the hello first of all. */
  receive(frame, now) {
    if (this.state !== State.GREETING && this.state !== State.OPEN) return [];
    this.#heard = now;
    this.silent = false;
    try {
      return this.peerHello === null ? this.#greet(frame, now) : this.#dispatch(decode(frame), now);
    } catch (error) {
      if (error instanceof LinkRefusal) this.refuse(error.reason, error.message, error.error);
      else if (error instanceof MeshError) {
        const text = sanitise(error.message);
        this.refuse("bad-message", text, new ProtocolError(`${this.#who()} broke the protocol: ${text}`));
      } else throw error;
      return [];
    }
  }

  #greet(frame, now) {
    const message = checkFirst(frame, this.hello, this.#expected);
    if (message.type !== "Hello") return this.#dispatch(message, now);
    this.peerHello = message;
    this.#outbox.credit = message.window_bytes;
    this.#pings.start(now);
    this.#move(State.OPEN);
    return [message];
  }

  #dispatch(message, now) {
    switch (message.type) {
      case "LinkRefused":
        this.closeReason = message.reason;
        this.closeError = refusalError(message, this.#who());
        this.#close();
        return [];
      case "Goodbye":
        this.#close();
        return [];
      case "Ping":
        this.#pong(message);
        return [];
      case "Pong":
        return this.#pings.pong(message.number, now) ? [message] : [];
      case "Credit":
        if (this.#outbox.credit + message.size > this.peerHello.window_bytes) throw new ProtocolError("more credit than data was sent");
        this.#outbox.credit += message.size;
        return [];
      case "Throughput":
        this.receiveBps = message.bps;
        return [];
      default:
        return this.#deliver(message);
    }
  }

  #deliver(message) {
    if (message.type === "Hello") throw new ProtocolError("a second hello");
    const fromTab = this.peerHello.via !== "";
    if (NOT_TO_TABS.has(message.type) || (fromTab && NOT_FROM_TABS.has(message.type))) {
      throw new ProtocolError(`${message.type} does not come from a ${fromTab ? "tab" : "peer"}`);
    }
    const size = cost(message);
    this.#window.received(size);
    if (!this.#requests.receiving(message)) {
      this.consumed(size);
      return [];
    }
    if (["Cancel", "Fail", "Refuse", "Done"].includes(message.type)) this.#outbox.drop(message.request);
    return [message];
  }

  #pong({ number }) {
    this.#pongs++;
    if (this.#pongs > limits.PENDING_PONGS) throw new ProtocolError("pings without reading the pongs");
    this.#outbox.putControl(encode(make("Pong", { number })));
  }

  // --- states ---------------------------------------------------------------------------------------

  #who() {
    if (this.peerHello !== null) return `${sanitise(this.peerHello.name)} (${this.peerHello.peer.slice(0, 8)})`;
    return this.#expected ? `peer ${this.#expected.slice(0, 8)}` : "the other end";
  }

  #lastWord(message) {
    this.#outbox.dropData();
    this.#outbox.putControl(encode(message));
    this.#deadline = Infinity;
    this.#move(State.CLOSING);
  }

  #close() {
    this.#outbox = new Outbox();
    this.#move(State.CLOSED);
  }

  #move(state) {
    if (!NEXT[this.state].includes(state)) throw new Error(`a link cannot go from ${this.state} to ${state}`);
    this.state = state;
  }
}
