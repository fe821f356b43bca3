// One link to another peer over a pipe: the handshake, then a session whose frames are sealed. Single-use.

import { MeshError, PeerLostError, ProtocolError } from "./errors.js";
import { cost } from "./flow.js";
import { peerId } from "./identity.js";
import * as limits from "./limits.js";
import { make } from "./messages.js";
import { Meter, trainBps } from "./meter.js";
import { Answerer, Opener } from "./sealed.js";
import { Session, State } from "./session.js";

const FULL_MS = 5; // until a socket that is full is looked at again
const TRAIN_PINGS = 6;
const QUEUE_LOOK_S = 0.05; // until a queue is looked at again

const now = () => performance.now() / 1000;

export class Link {
  session;
  #pipe;
  #channel = null;
  #shaking; // Opener or Answerer, until there is a channel
  #on;
  #dialled;
  #tick = null;
  #pumping = null; // a timer while the socket is full
  #waiting = []; // for room
  #probes = new Map(); // number -> what takes the time of its pong
  #pauses = new Set(); // timers of what waits, and what it does then
  #meter = new Meter();
  #marked = null; // the number of the ping that ends a run
  #toldBps = null; // what the other end knows
  #silent = false;
  #over = false;

  /**
   * @param pipe     to the peer
   * @param me       { certificate, secret }
   * @param hello    of this end
   * @param dialled  whether this end opened the pipe
   * @param on       message(link, message), the hello first; closed(link, error or null); silence(link)
   */
  constructor(pipe, me, hello, dialled, on) {
    this.peer = pipe.peer; // id
    this.#pipe = pipe;
    this.#on = on;
    this.#dialled = dialled;
    this.session = new Session(hello, { expected: pipe.peer });
    pipe.onmessage = (payload) => this.#received(payload);
    pipe.onclosed = (why) => this.#lost(why);
    this.#tick = setTimeout(() => this.#lost("no handshake in time"), 1000 * limits.HANDSHAKE_S);
    this.#shaking = dialled ? new Opener(me, pipe.peer) : me;
    if (dialled) pipe.send(this.#shaking.first);
  }

  /** The hello of the other end; null before it came. */
  get hello() {
    return this.session.peerHello;
  }

  get isOpen() {
    return this.session.state === State.OPEN;
  }

  get isSilent() {
    return this.session.silent;
  }

  get queuedBytes() {
    return this.session.queuedBytes;
  }

  /** What was given to send() and is not known to have arrived: see Meter. */
  backlog() {
    return this.#meter.backlog(now(), this.session.queuedBytes, this.session.roundTripS);
  }

  /** Queue a message; the length of its frame. MeshError if the link is over. */
  send(message) {
    const size = this.session.send(message);
    this.#changed();
    return size;
  }

  /** Queue a message; that the link is over is no error here. */
  sendIfOpen(message) {
    if (!this.isOpen) return;
    try {
      this.send(message);
    } catch (error) {
      if (!(error instanceof MeshError)) throw error;
    }
  }

  /** Wait until less than SEND_QUEUE_BYTES are queued; PeerLostError if the link ends. */
  async drain() {
    while (this.isOpen && this.queuedBytes >= limits.SEND_QUEUE_BYTES) await new Promise((done) => this.#waiting.push(done));
    if (!this.isOpen) throw this.session.closeError ?? new PeerLostError("the link is closed");
  }

  /** Whether all that was sent so far got there: true once the other end says so, false if it is lost before. */
  async arrived() {
    while (this.isOpen && this.queuedBytes) await this.#pause(QUEUE_LOOK_S); // a ping would overtake it
    if (!this.isOpen) return !(this.session.closeError instanceof PeerLostError);
    const number = this.session.ping(now());
    const answered = new Promise((done) => this.#probes.set(number, (at) => done(at !== null, this.#probes.delete(number))));
    this.#changed();
    return (await answered) || !(this.session.closeError instanceof PeerLostError);
  }

  /** Give back the credit of a data message that is no longer held. */
  consumed(message) {
    if (this.session.state === State.CLOSED) return;
    this.session.consumed(cost(message));
    this.#changed();
  }

  /** Nothing more is wanted for a request on this link. */
  end(request) {
    this.session.end(request);
  }

  /** End the link with a named reason. */
  refuse(reason, text = "") {
    this.session.refuse(reason, text);
    this.#changed();
  }

  /** Leave: the goodbye is written if the socket takes it now. */
  close(text = "") {
    this.session.goodbye(text);
    this.#changed();
  }

  #lost(why) {
    this.session.lost(why);
    this.#changed();
  }

  // --- what comes in --------------------------------------------------------------------------------

  #received(payload) {
    if (this.#over) return;
    try {
      if (this.#channel !== null) this.#take(this.#channel.open(payload));
      else this.#shake(payload);
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.#lost(error.message); // what cannot be trusted is no frame: nothing is answered
    }
    this.#changed();
  }

  #shake(payload) {
    if (this.#dialled) {
      const { third, channel } = this.#shaking.finish(payload);
      this.#pipe.send(third);
      this.#begin(channel);
    } else if (!(this.#shaking instanceof Answerer)) {
      this.#shaking = new Answerer(this.#shaking, payload);
      const found = peerId(this.#shaking.certificate);
      if (found !== this.peer) throw new ProtocolError(`peer ${found.slice(0, 8)} speaks instead of ${this.peer.slice(0, 8)}`);
      this.#pipe.send(this.#shaking.second);
    } else this.#begin(this.#shaking.finish(payload));
  }

  #begin(channel) {
    this.#channel = channel;
    this.#shaking = null;
    this.session.start(now());
  }

  #take(frame) {
    for (const message of this.session.receive(frame, now())) {
      if (message.type === "Pong") {
        this.#ponged(message.number);
        continue;
      }
      if (message.type === "Hello") this.#measure();
      try {
        this.#on.message(this, message);
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error;
        this.session.refuse("bad-message", error.message, error);
      }
    }
  }

  #ponged(number) {
    const probe = this.#probes.get(number);
    if (probe) probe(now());
    else if (number === this.#marked) {
      this.#marked = null;
      if (this.#meter.pong(now(), this.session.roundTripS, this.session.leastTripS)) this.#tellRate();
    }
  }

  // --- what goes out --------------------------------------------------------------------------------

  /** The session was touched: write what may go, and look when it wants to be called. */
  #changed() {
    if (this.#over) return;
    this.#write();
    if (this.#channel !== null) this.#schedule();
    if (this.#silent !== this.session.silent) {
      this.#silent = this.session.silent;
      this.#on.silence(this);
    }
    if (this.session.state === State.CLOSED) this.#end();
  }

  #write() {
    if (this.#channel === null || this.#pumping !== null) return;
    while (this.session.state !== State.CLOSED) {
      if (!this.#pipe.hasRoom) {
        this.#pumping = setTimeout(() => {
          this.#pumping = null;
          this.#changed();
        }, FULL_MS);
        break;
      }
      const began = now();
      const frames = this.session.frames();
      if (frames.length) {
        for (const frame of frames) this.#pipe.send(this.#channel.seal(frame));
        if (this.#meter.wrote(frames.reduce((sum, frame) => sum + frame.length, 0), began)) this.#markRun();
      } else if (this.isOpen && this.#meter.idle(began)) this.#markRun();
      else break;
    }
    if (this.queuedBytes < limits.SEND_QUEUE_BYTES) this.#release();
  }

  /** Let a ping follow what was written: its pong says when that was there. */
  #markRun() {
    if (!this.isOpen) return;
    this.#meter.mark(now());
    this.#marked = this.session.ping(now());
  }

  /** Tell the other end, which cannot measure this direction, unless it knows about it. */
  #tellRate() {
    const { bps } = this.#meter;
    if (bps === null || !this.#toldBps || Math.min(bps, this.#toldBps) > limits.PLENTY_BPS) return;
    if (bps / this.#toldBps > 0.8 && bps / this.#toldBps < 1.25) return;
    this.#toldBps = bps;
    this.sendIfOpen(make("Throughput", { bps }));
  }

  #schedule() {
    clearTimeout(this.#tick);
    const due = this.session.tick(now());
    this.#write(); // what tick queued
    if (due < Infinity) this.#tick = setTimeout(() => this.#changed(), Math.max(0, 1000 * (due - now())));
  }

  #release() {
    for (const done of this.#waiting.splice(0)) done();
  }

  #end() {
    this.#over = true;
    clearTimeout(this.#tick);
    clearTimeout(this.#pumping);
    this.#release();
    for (const done of this.#probes.values()) done(null);
    for (const done of this.#pauses) done();
    const { closeError, timings } = this.session;
    if (closeError instanceof PeerLostError) this.#pipe.close();
    else setTimeout(() => this.#pipe.close(), 1000 * timings.closeS); // the last word is on its way; what waits would be dropped
    this.#on.closed(this, this.session.closeError);
  }

  // --- measuring ------------------------------------------------------------------------------------

  /** Measure what this end can send, now and then, until the link is over; the end that dialled goes first. */
  async #measure() {
    if (!this.#dialled) await this.#told();
    while (this.isOpen) {
      // Real traffic or a probe measured it not long ago: a probe would tell no more.
      const known = now() - this.#meter.measured < limits.PROBE_EVERY_S / 2;
      if (!this.isSilent && !(known && this.#toldBps)) await this.#probe();
      await this.#pause(limits.PROBE_EVERY_S * (0.8 + 0.4 * Math.random()));
    }
  }

  async #told() {
    const end = now() + limits.PROBE_TIMEOUT_S;
    while (this.isOpen && this.session.receiveBps === null && now() < end) await this.#pause(0.05);
  }

  async #probe() {
    let rate = await this.#train(Math.floor(limits.PROBE_BYTES / TRAIN_PINGS), TRAIN_PINGS);
    if (rate > limits.PROBE_FAST_BPS) {
      rate = await this.#train(limits.PING_PADDING_BYTES, Math.floor(limits.PROBE_FAST_BYTES / limits.PING_PADDING_BYTES));
    }
    if (!(rate > 0)) return;
    this.#meter.probed(rate, now());
    this.#toldBps = rate;
    this.sendIfOpen(make("Throughput", { bps: rate }));
  }

  /** Bits per second, from `count` pings in a row; 0 if no pong came in time. */
  async #train(size, count) {
    const pongs = [];
    for (const padding of [0, ...Array(count).fill(size)]) {
      if (!this.isOpen) return 0;
      const number = this.session.ping(now(), padding);
      pongs.push(new Promise((done) => this.#probes.set(number, (at) => done(at, this.#probes.delete(number)))));
    }
    this.#changed();
    const times = await Promise.race([Promise.all(pongs), this.#pause(limits.PROBE_TIMEOUT_S)]);
    if (!times || times.includes(null)) return 0;
    return trainBps(times, size);
  }

  /** Wait so long, or until the link is over. */
  #pause(seconds) {
    if (this.#over) return Promise.resolve();
    return new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#pauses.delete(done);
        resolve();
      };
      const timer = setTimeout(done, 1000 * seconds);
      this.#pauses.add(done);
    });
  }
}
