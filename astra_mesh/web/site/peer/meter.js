// How fast a link is, from what was seen on it, without I/O; the same rules as astra_mesh/mesh/probe.py.

import * as limits from "./limits.js";

const LEAST_BYTES = 2 * 1024; // of a run: less is not worth a ping
const MOST_BYTES = 256 * 1024; // of a run: then it is marked while it goes on
const EVERY_S = 0.05; // between two marks
const PONG_S = 5; // a mark whose pong takes longer counts no more
const SLACK_S = 0.01; // that two busy event loops may add to a run
const RESOLUTION_S = 0.002; // shorter times are not told apart
const AGREEING = 6; // runs that must be slower than the estimate, before it falls
const REMEMBERED = 4 * AGREEING; // runs
const COMPARABLE = 0.25; // of the size of slow runs: smaller ones may fit into a buffer, and contradict none
const GAIN = 0.5; // of a run that was faster
const NEAR = 1.05; // a run so close to the estimate says what is known already
const TELLING = 2; // times: a run says how fast a link is if its bounds are no further apart

/** Bits per second of a train of pings: the lower one of the whole train's rate and its second half's. */
export function trainBps(pongs, size) {
  const last = pongs.length - 1;
  const half = Math.floor(last / 2);
  const whole = (8 * size * last) / Math.max(pongs[last] - pongs[0], 1e-6);
  const second = (8 * size * (last - half)) / Math.max(pongs[last] - pongs[half], 1e-6);
  return Math.min(whole, second);
}

/** Whether a run says that the link is as fast as estimated: most are too short to tell that. */
function tells(floor, ceiling, bps) {
  if (floor >= limits.PLENTY_BPS) return bps >= limits.PLENTY_BPS;
  return floor / NEAR <= bps && bps <= ceiling * NEAR && ceiling <= TELLING * floor;
}

/** Throughput of a link from its real traffic; see the Python class. */
export class Meter {
  bps = null; // bits per second
  measured = -Infinity; // when a probe or a run last said how fast it is
  #since = 0;
  #bytes = 0;
  #goesOn = false; // what is marked next has more behind it
  #mark = null; // { since, size, goesOn } of the run that waits for its pong
  #last = null; // the one before, if this one followed without a pause
  #next = -Infinity; // no mark before
  #pong = -Infinity; // when the last one came
  #runs = []; // { size, floor, ceiling }: bits per second, at least and at most

  /** So many bytes were given to the socket; whether to mark the end of the run here, though it goes on. */
  wrote(size, began) {
    if (!this.#bytes) this.#since = began;
    this.#bytes += size;
    this.#goesOn = this.#bytes >= MOST_BYTES && this.#mayMark(began);
    return this.#goesOn;
  }

  /** Nothing is left to write: the run is over; whether to mark its end. */
  idle(now) {
    if (this.#bytes >= LEAST_BYTES && this.#mayMark(now)) return true;
    this.#bytes = 0;
    return false;
  }

  #mayMark(now) {
    const lost = this.#mark !== null && now - this.#mark.since > PONG_S;
    return (this.#mark === null || lost) && now >= this.#next;
  }

  /** A ping follows what was written so far. */
  mark(now) {
    this.#mark = { since: this.#since, size: this.#bytes, goesOn: this.#goesOn };
    this.#bytes = 0;
    this.#goesOn = false;
    this.#next = now + EVERY_S;
  }

  /**
   * The pong of the last mark came; whether the estimate changed. `roundTripS`: as it usually is; `leastTripS`: the
   * shortest one lately; null: not known.
   */
  pong(now, roundTripS, leastTripS) {
    if (this.#mark === null) return false;
    const marked = this.#mark;
    this.#mark = null;
    const { size } = marked;
    const tripS = roundTripS ?? 0;
    const end = now - (leastTripS ?? 0);
    let floor = (8 * size) / Math.max(end - marked.since, RESOLUTION_S);
    if (this.#last !== null) {
      // Both together: less of that time was the queue's before them.
      const both = (8 * (this.#last.size + size)) / Math.max(end - this.#last.since, RESOLUTION_S);
      floor = Math.max(floor, both);
    }
    // Where writing went on, what was written before had to get through first.
    const leastS = now - Math.max(marked.since, this.#pong - tripS) - tripS - SLACK_S;
    const ceiling = Math.max(floor, leastS > 0 ? (8 * size) / leastS : Infinity);
    this.#last = marked.goesOn ? marked : null;
    this.#pong = now;
    this.#runs = [...this.#runs, { size, floor, ceiling }].slice(-REMEMBERED);
    const before = this.bps;
    const most = this.#mostBps();
    if (before === null) this.bps = floor;
    else if (most < before) this.bps = most;
    else if (floor > before) this.bps += GAIN * (Math.min(floor, most) - before);
    if (tells(floor, ceiling, this.bps)) this.measured = now;
    return this.bps !== before;
  }

  /** What the last runs agree that the link carries at most; Infinity: they do not. */
  #mostBps() {
    const slow = this.#runs.filter((run) => run.ceiling < Infinity).slice(-AGREEING);
    if (slow.length < AGREEING) return Infinity;
    const least = COMPARABLE * Math.max(...slow.map((run) => run.size));
    const since = this.#runs.slice(this.#runs.indexOf(slow[0]));
    const floors = since.filter((run) => run.size >= least).map((run) => run.floor);
    return Math.max(...slow.map((run) => run.ceiling), ...floors);
  }

  /**
   * What is under way; `queued` bytes more wait to be written. `size`: in bytes; `bps`: at most, because it took so
   * long already, Infinity: not known; `measuredBps`: as estimated, or null.
   */
  backlog(now, queued, roundTripS) {
    const { since, size: marked } = this.#mark ?? { since: this.#since, size: 0 };
    const size = marked + this.#bytes;
    const tookS = now - since - (roundTripS ?? 0) - SLACK_S;
    const bps = size && tookS > 0 ? (8 * size) / tookS : Infinity;
    return { size: size + queued, bps, measuredBps: this.bps };
  }

  /** A probe measured this. */
  probed(bps, now) {
    this.bps = bps;
    this.measured = now;
    this.#runs = [];
  }
}
