// A browser tab as a peer of the mesh: links, models and work put together. It runs in a worker, or in node.

import { PeerLostError } from "./errors.js";
import { Link } from "./link.js";
import * as limits from "./limits.js";
import { MAGIC, make, PROTOCOL_VERSION, sanitise } from "./messages.js";
import { Models } from "./models.js";
import { Mux } from "./mux.js";
import { Pulse } from "./pace.js";
import { Ended } from "./part.js";
import { Turns } from "./pipeline.js";
import { Work } from "./work.js";

const REFRESH_MS = 30_000; // between two looks for new models of the host
const LOOK_MS = 500; // between two looks at the clock, which stands still while a device sleeps
const QUIET_LOOKS = 6; // without a word of the host, which answers a ping each second. Seconds would not do: a tab that stood still heard nothing either

const isRecent = (at) => performance.now() - at < 1000 * limits.LOST_S;

/** What a tab knows of the newest request that was away: nothing, for others came meanwhile, perhaps. */
const Since = { JOINED: "since-joined", WOKE: "since-woke" };

export class TabPeer {
  #mux;
  #http;
  #models;
  #work;
  #device;
  #name;
  #show;
  #host = null; // { id, name }
  #listed = new Map(); // id -> { name, tab }
  #links = new Map(); // id -> Link
  #lost = new Map(); // id -> when its last link was lost without a goodbye, in milliseconds
  #waits = new Map(); // id -> { timer, waitS } of peers that could not be linked
  #state = { phase: "connecting", why: "", leftOut: null };
  #now = null; // what is computed
  #done = 0; // shards
  #newest = null; // how the newest request ended here, of Ended; or of Since: that it would not know
  #newestAt = 0; // when that, or why this tab was left out, was said, in milliseconds
  #joinedAt = null;
  #seal = null; // the host's point, for what is asked of it over HTTP
  #downWhy = ""; // why the host could not be joined
  #problem = ""; // of that, where it failed
  #quiet = false; // nothing is heard of the host
  #asleep = false; // and said so
  #visible = true;
  #pulse;
  #looked = Date.now();
  #looking = null;
  #refreshed = 0;

  /**
   * @param makeSocket  a fresh WebSocket to /tab
   * @param http        for Models; refusal(): why the host lets no tab join, "" if it would
   * @param engine      for Models
   * @param device      a Device of the protocol, about this one
   * @param name        of it, for people
   * @param show        told what a person may see: see #tell
   */
  constructor({ makeSocket, http, engine, device, name, show }) {
    this.#device = device;
    this.#name = sanitise(name, limits.NAME_CHARS) || "browser";
    this.#show = show;
    this.#http = http;
    const turns = new Turns();
    this.#models = new Models({
      http, engine, changed: () => this.#modelsChanged(), worked: () => turns.changes, running: () => this.#work.running, seal: () => this.#seal,
    });
    this.#mux = new Mux(makeSocket, this.#name, {
      welcome: (found) => this.#welcome(found),
      peers: (list) => this.#peers(list),
      incoming: (pipe) => this.#incoming(pipe),
      down: (why, againS) => this.#down(why, againS),
      trying: () => this.#trying(),
    });
    this.#work = new Work({
      me: () => this.#mux.me.id,
      models: this.#models,
      findLink: (peer) => this.#link(peer),
      mayBeBack: (peer) => this.#mayBeBack(peer),
      turns,
      isAway: (link) => this.#isAway(link),
      status: (link) => this.#sendStatus(link),
      on: {
        began: (about) => this.#tell({ now: { ...about, block: 0 }, leftOut: null }),
        block: (block) => this.#tell({ now: { ...this.#now, block } }),
        computed: (plan, layout, seconds) => this.#computed(plan, layout, seconds),
        ended: (how, why) => this.#ended(how, why),
        missed: () => this.#missed(),
        leftOut: (link, why) => this.#leftOut(sanitise(link.hello.name, limits.NAME_CHARS), sanitise(why)),
      },
    });
    this.#pulse = new Pulse({
      feel: () => this.#models.feel(() => !this.#work.running),
      wanted: () => this.#visible && [...this.#links.keys()].some((peer) => this.#link(peer)),
      threads: device.threads,
    });
  }

  start() {
    this.#mux.start();
    this.#pulse.start();
    this.#looking = setInterval(() => this.#look(), LOOK_MS);
    this.#tell();
  }

  /** Say goodbye to all and be gone for good. */
  leave() {
    clearInterval(this.#looking);
    this.#pulse.stop();
    for (const link of this.#links.values()) link.close("leaving");
    for (const { timer } of this.#waits.values()) clearTimeout(timer);
    this.#waits.clear();
    this.#models.close();
    this.#mux.leave();
    this.#tell({ phase: "left", why: "" });
  }

  /** The browser is about to stop this page: say goodbye, so that nobody waits for it. */
  sleep() {
    for (const link of this.#links.values()) link.close("sleeping");
    this.#mux.rest("this device sleeps");
    this.#asleep = true;
    this.#tell({ phase: "waiting", why: "the browser put this page to sleep" });
  }

  /** Whether a person can see the page: only then it looks how fast it is, for the battery's sake. */
  set visible(visible) {
    this.#visible = visible;
  }

  /** Somebody looks at the page again, or the network is back. */
  hurry() {
    this.#asleep = false;
    this.#look();
    this.#mux.hurry();
  }

  /** A device that slept for so long was given up by the others: join anew at once. */
  #look() {
    const before = this.#looked;
    this.#looked = Date.now();
    const slept = (this.#looked - before) / 1000;
    if (slept > limits.SILENCE_S && this.#newestAt < before + 2 * LOOK_MS && this.#joinedAt !== null) this.#forget(Since.WOKE);
    if (slept > limits.LOST_S && this.#asleep) this.hurry();
    else if (slept > limits.LOST_S) this.#mux.giveUp("this device slept");
    else if (this.#mux.me !== null && Date.now() - this.#refreshed > REFRESH_MS) this.#refresh();
    this.#listen();
  }

  /** A network that is gone closes nothing: say so before the host is given up, which it may not have to be. */
  #listen() {
    const quiet = this.#mux.me !== null && ++this.#mux.looks >= QUIET_LOOKS;
    if (quiet === this.#quiet) return;
    this.#quiet = quiet;
    this.#tell();
  }

  // --- the host -------------------------------------------------------------------------------------

  #welcome({ me, host, machine, seal }) {
    this.#seal = seal;
    this.#host = { id: host.id, name: sanitise(host.name, limits.NAME_CHARS) };
    this.#device = { ...this.#device, host: machine || this.#device.host };
    const lostNow = this.#newest === Ended.LOST && this.#newestAt >= this.#joinedAt;
    if (this.#joinedAt !== null && !lostNow) this.#forget(Since.JOINED);
    this.#joinedAt = Date.now();
    this.#downWhy = "";
    this.#tell({ phase: "joined", why: "", id: me.id });
    this.#refresh(true);
  }

  /** Ask the host which models there are. */
  async #refresh(joined = false) {
    this.#refreshed = Date.now();
    try {
      await this.#models.refresh(joined);
      if (this.#mux.me !== null) this.#tell({ why: "" });
    } catch (error) {
      if (this.#mux.me !== null) this.#tell({ why: error.message });
    }
  }

  #down(why, againS) {
    for (const { timer } of this.#waits.values()) clearTimeout(timer);
    this.#waits.clear();
    this.#listed.clear();
    this.#quiet = false;
    this.#waitFor(why, againS);
    this.#explain(againS);
  }

  #waitFor(why, againS) {
    this.#downWhy = sanitise(why);
    this.#tell({ phase: "waiting", why: `${this.#downWhy}; joining again in ${Math.ceil(againS)} s` });
  }

  /** A try may take a while until it fails. */
  #trying() {
    if (this.#downWhy) this.#tell({ why: `${this.#downWhy}; joining again now` });
  }

  /** Browsers do not tell why a WebSocket was refused: ask over HTTP. */
  async #explain(againS) {
    const why = await this.#http.refusal();
    if (!why || this.#mux.me) return;
    this.#waitFor(why, againS);
    if (this.#mux.tries) this.#trying();
  }

  // --- links ----------------------------------------------------------------------------------------

  #peers(list) {
    this.#listed = new Map(list.map(({ id, name, tab }) => [id, { name: sanitise(name, limits.NAME_CHARS), tab }]));
    for (const id of this.#listed.keys()) this.#reach(id);
    this.#tell();
  }

  /** Open a link; of two tabs the one with the lower id does. */
  #reach(id) {
    const { me } = this.#mux;
    const tab = this.#listed.get(id)?.tab;
    if (me === null || id === me.id || this.#links.has(id) || this.#waits.has(id)) return;
    if (tab === undefined || (tab && me.id > id)) return;
    this.#begin(this.#mux.open(id), true);
  }

  #incoming(pipe) {
    if (this.#links.has(pipe.peer)) pipe.close();
    else this.#begin(pipe, false);
  }

  #begin(pipe, dialled) {
    const link = new Link(pipe, this.#mux.me, this.#hello(), dialled, {
      message: (_, message) => this.#message(link, message),
      closed: (_, error) => this.#closed(link, error),
      silence: () => this.#tell(),
    });
    this.#links.set(pipe.peer, link);
  }

  #hello() {
    return make("Hello", {
      magic: MAGIC, version: PROTOCOL_VERSION, peer: this.#mux.me.id, name: this.#name, role: "peer", window_bytes: limits.WINDOW_BYTES,
      device: this.#device, models: this.#models.offers(), via: this.#host.id,
    });
  }

  #message(link, message) {
    if (message.type !== "Hello") return this.#work.onMessage(link, message);
    this.#waits.delete(link.peer);
    this.#sendStatus(link); // what changed since the hello was made
    this.#tell();
  }

  #closed(link, error) {
    const { peer } = link;
    if (this.#links.get(peer) !== link) return;
    this.#links.delete(peer);
    this.#noteLost(peer, error);
    this.#work.linkGone(link, error ?? new PeerLostError(`${link.hello?.name ?? "a peer"} left the mesh`));
    this.#tell();
    if (this.#mux.me === null) return;
    if (peer === this.#host.id && link.hello !== null && error instanceof PeerLostError) this.#mux.giveUp(error.message);
    else this.#later(peer, link.hello !== null);
  }

  /** Try a peer again, later each time that it could not be reached. */
  #later(peer, reached) {
    const waitS = reached ? limits.BACKOFF_FIRST_S : Math.min(2 * (this.#waits.get(peer)?.waitS ?? limits.BACKOFF_FIRST_S / 2), limits.BACKOFF_CAP_S);
    const wait = { waitS, timer: null };
    wait.timer = setTimeout(() => {
      this.#waits.delete(peer);
      this.#reach(peer);
      if (this.#links.has(peer)) this.#waits.set(peer, wait);
    }, 1000 * waitS);
    this.#waits.set(peer, wait);
  }

  #link(peer) {
    const link = this.#links.get(peer);
    return link?.isOpen && !link.isSilent ? link : null;
  }

  /** Who said goodbye will not be back. */
  #noteLost(peer, error) {
    this.#lost.delete(peer);
    for (const [one, at] of this.#lost) if (!isRecent(at)) this.#lost.delete(one);
    if (error) this.#lost.set(peer, performance.now());
  }

  /** Whether a peer without a link to use had one a moment ago and did not say goodbye, or is linked for the first time. */
  #mayBeBack(peer) {
    const link = this.#links.get(peer);
    return Boolean(link?.hello || (link && !this.#waits.has(peer))) || isRecent(this.#lost.get(peer) ?? -Infinity);
  }

  /** Whether this tab is cut off where a link was lost; else only the other end is gone. */
  #isAway(link) {
    return link.session.closeError instanceof PeerLostError && (this.#mux.me === null || this.#quiet || link.peer === this.#host.id);
  }

  // --- models and work ------------------------------------------------------------------------------

  #sendStatus(link) {
    link.sendIfOpen(make("Status", { models: this.#models.offers() }));
  }

  #offered = "";

  #modelsChanged() {
    const offers = JSON.stringify(this.#models.offers());
    if (offers !== this.#offered) {
      this.#offered = offers;
      for (const link of this.#links.values()) this.#sendStatus(link);
    }
    this.#tell();
  }

  /**
   * What a share took is told at once; not where another peer of the plan shares the processor, which planners know, nor
   * while nobody sees the page: a look could not take it back.
   */
  #computed({ model, shards }, layout, seconds) {
    const beside = shards.some(({ peer }) => this.#links.get(peer)?.hello?.device?.host === this.#device.host);
    const own = shards.findIndex(({ peer }) => peer === this.#mux.me?.id);
    if (this.#visible && !beside && own >= 0) this.#models.took(model, layout, own, seconds);
  }

  #ended(how, why = "") {
    if (how === Ended.DONE) this.#done++;
    this.#newest = how;
    this.#newestAt = Date.now();
    this.#problem = why;
    const planned = how === Ended.DONE || how === Ended.STOPPED; // a newer one may have left it out
    this.#tell({ now: null, ...(planned ? {} : { leftOut: null }) });
  }

  /** What was told to be done was lost on its way: others do it. */
  #missed() {
    this.#done--;
    if (this.#newest === Ended.DONE) this.#newest = Ended.LOST;
    this.#newestAt = Date.now();
    this.#tell();
  }

  #leftOut(by, why) {
    this.#newestAt = Date.now();
    this.#tell({ leftOut: { by, why } });
  }

  /** The newest request that this tab knows of is perhaps not the newest any more. */
  #forget(since) {
    this.#newest = since;
    this.#problem = "";
    this.#tell({ leftOut: null });
  }

  // --- for people -----------------------------------------------------------------------------------

  #tell(news = {}) {
    if ("now" in news) this.#now = news.now;
    const { now, ...state } = news;
    Object.assign(this.#state, state);
    this.#show({
      ...this.#state,
      ...this.#silence(),
      name: this.#name,
      host: this.#host?.name ?? "",
      linked: [...this.#links.values()].filter((link) => link.isOpen).map((link) => sanitise(link.hello.name, limits.NAME_CHARS)),
      models: this.#models.states(),
      now: this.#now,
      done: this.#done,
      newest: this.#newest,
      problem: this.#problem,
    });
  }

  #silence() {
    if (!this.#quiet || this.#state.phase !== "joined") return {};
    return { phase: "waiting", why: `nothing is heard of ${this.#host.name}; joining again as soon as it answers` };
  }
}
