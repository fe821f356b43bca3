// The state machine of a link, case by case as tests/unit/mesh/test_session.py.

import assert from "node:assert/strict";
import { test } from "node:test";

import { PeerLostError, ProtocolError, RefusedError, VersionMismatchError } from "../../astra_mesh/web/site/peer/errors.js";
import { cost } from "../../astra_mesh/web/site/peer/flow.js";
import * as limits from "../../astra_mesh/web/site/peer/limits.js";
import { decode, encode, make } from "../../astra_mesh/web/site/peer/messages.js";
import { Session, State } from "../../astra_mesh/web/site/peer/session.js";
import { A, B, C, codes, done, hello, opened, propose, R1, R2, R3, sent, started, TIMINGS } from "./helpers.js";

const accept = (request) => make("Accept", { request });
const refuse = (request) => make("Refuse", { request, reason: "busy" });
const cancel = (request) => make("Cancel", { request });
const types = (messages) => messages.map((message) => message.type);

/** A session with a proposal from B. */
function asked(request = R1, changes = {}) {
  const session = opened(changes);
  session.receive(encode(propose(request)), 0);
  return session;
}

function refusedFor(session, reason, pattern = /./) {
  const [last] = sent(session).slice(-1);
  assert.equal(last.type, "LinkRefused");
  assert.equal(last.reason, reason);
  assert.equal(session.state, State.CLOSED);
  assert.match(session.closeError.message, pattern);
}

test("hello both ways", () => {
  const session = new Session(hello(A), { timings: TIMINGS });
  assert.deepEqual(session.frames(), []);
  assert.throws(() => session.send(accept(R1)), PeerLostError);
  session.start(0);
  assert.deepEqual(sent(session), [hello(A)]);
  assert.deepEqual(session.receive(encode(hello(B)), 0), [hello(B)]);
  assert.equal(session.state, State.OPEN);
  assert.throws(() => session.start(0));
});

for (const [theirs, side] of [[2, "this device"], [0, "the other device"]]) {
  test(`a hello of version ${theirs}`, () => {
    const session = started();
    session.receive(encode(hello(B, { version: theirs })), 0);
    assert.ok(session.closeError instanceof VersionMismatchError);
    assert.ok(session.closeError.message.includes(`update ${side}`));
    refusedFor(session, "protocol-version");
  });
}

test("this end is refused for its version", () => {
  const session = started();
  session.receive(encode(make("LinkRefused", { reason: "protocol-version", text: "update this device" })), 0);
  assert.ok(session.closeError instanceof VersionMismatchError);
  assert.equal(session.closeError.message, "update this device");
});

test("itself, another than expected, a client", () => {
  let session = started();
  session.receive(encode(hello(A)), 0);
  refusedFor(session, "self");
  session = started(hello(A), B);
  session.receive(encode(hello(C)), 0);
  refusedFor(session, "wrong-peer", /cccccccc answers instead of bbbbbbbb/);
  session = started();
  session.receive(encode(hello(B, { role: "client" })), 0);
  refusedFor(session, "bad-message", /client/);
});

for (const message of [make("Ping", { number: 1 }), propose(R1), codes(R1)]) {
  test(`${message.type} before the hello`, () => {
    const session = started();
    assert.deepEqual(session.receive(encode(message), 0), []);
    refusedFor(session, "bad-message", /before the hello/);
  });
}

test("a second hello, and garbage", () => {
  let session = opened();
  session.receive(encode(hello(B)), 0);
  refusedFor(session, "bad-message", /a second hello/);
  for (const session of [started(), opened()]) {
    session.receive(Uint8Array.of(1, 2, 3), 0);
    refusedFor(session, "bad-message", /no array/);
    assert.ok(session.closeError instanceof ProtocolError);
  }
});

test("a refusal or a goodbye may come before the hello", () => {
  let session = started();
  session.receive(encode(make("LinkRefused", { reason: "busy" })), 0);
  assert.equal(session.state, State.CLOSED);
  assert.ok(session.closeError instanceof RefusedError);
  session = started();
  session.receive(encode(make("Goodbye", { text: "bye" })), 0);
  assert.equal(session.state, State.CLOSED);
  assert.equal(session.closeError, null);
});

test("what a tab may neither send nor get", () => {
  const session = opened();
  for (const message of [propose(R1), make("Prepare", { request: R1, model: A })]) assert.throws(() => session.send(message), ProtocolError);
  const toATab = [make("Token", { request: R1, index: 0, token: 1 }), make("Roster", { mesh: new Uint8Array(16), entries: [] })];
  for (const message of toATab) {
    const session = opened();
    session.receive(encode(message), 0);
    refusedFor(session, "bad-message", /does not come from a peer/);
  }
  const other = opened({ via: C }); // of another tab
  other.receive(encode(propose(R1)), 0);
  refusedFor(other, "bad-message", /does not come from a tab/);
});

for (const message of [accept(R1), refuse(R1), done(R1), make("Progress", { request: R1, marks: [] })]) {
  test(`${message.type} from the other end, which was asked nothing`, () => {
    const session = opened();
    session.receive(encode(message), 0);
    refusedFor(session, "bad-message", /was not made/);
  });
  test(`${message.type} from this end, which was asked nothing`, () => {
    assert.throws(() => opened().send(message), ProtocolError);
  });
}

test("a proposal is answered once, and an id is used once", () => {
  const session = asked();
  session.send(accept(R1));
  assert.throws(() => session.send(accept(R1)), ProtocolError);
  session.receive(encode(propose(R1)), 0);
  refusedFor(session, "bad-message", /id of another request/);
});

test("a whole request", () => {
  const session = asked();
  session.send(accept(R1));
  session.send(codes(R1));
  session.send(done(R1));
  assert.deepEqual(types(sent(session)), ["Accept", "Codes", "Done"]);
  session.send(codes(R1)); // it ended: void
  assert.deepEqual(sent(session), []);
  session.receive(encode(propose(R1)), 0);
  refusedFor(session, "bad-message");
});

test("late messages are dropped and their credit is given back", () => {
  const session = asked();
  session.send(accept(R1));
  session.receive(encode(cancel(R1)), 0);
  sent(session);
  const size = 60_000;
  for (let i = 0; i < 3; i++) assert.deepEqual(session.receive(encode(codes(R1, 0, size)), 0), []);
  assert.equal(session.unconsumedBytes, 0);
  assert.deepEqual(sent(session), [make("Credit", { size: 3 * (size + 64) })]);
});

for (const end of [cancel(R1), make("Fail", { request: R1, code: "busy", text: "" }), refuse(R1)]) {
  test(`${end.type} drops queued codes`, () => {
    const session = asked();
    session.send(codes(R1));
    session.send(codes(R2));
    session.send(end);
    assert.deepEqual(sent(session), [end, codes(R2)]);
    assert.equal(session.queuedBytes, 0);
  });
}

test("the application ends a request", () => {
  const session = asked();
  session.send(codes(R1));
  session.end(R1);
  assert.deepEqual(sent(session), []);
  assert.deepEqual(session.receive(encode(codes(R1)), 0), []);
});

test("codes for unknown requests are handed up", () => {
  assert.deepEqual(opened().receive(encode(codes(R3)), 0), [codes(R3)]);
});

test("too many open requests", () => {
  const session = opened();
  for (let i = 1; i <= limits.OPEN_REQUESTS_PER_LINK; i++) session.receive(encode(propose(BigInt(i))), 0);
  assert.equal(session.state, State.OPEN);
  session.receive(encode(propose(9999n)), 0);
  refusedFor(session, "bad-message", /requests are open/);
});

// --- flow control -----------------------------------------------------------------------------------

test("data waits for credit, control does not, and credit comes in lumps", () => {
  const size = 60_000;
  const session = opened(); // with a window of 256 KiB
  for (let i = 0; i < 6; i++) session.send(codes(R1, i, size));
  session.send(cancel(R2));
  assert.deepEqual(types(sent(session)), ["Cancel", ...Array(4).fill("Codes")]);
  session.receive(encode(make("Credit", { size: 2 * (size + 64) })), 0);
  assert.deepEqual(sent(session).map((message) => message.block), [4, 5]);
  session.receive(encode(make("Credit", { size: limits.WINDOW_MIN_BYTES })), 0);
  refusedFor(session, "bad-message", /more credit/);
});

test("credit is given in half windows, and an overrun ends the link", () => {
  const session = opened();
  const message = codes(R1, 0, 60_000);
  for (let i = 0; i < 4; i++) session.receive(encode(message), 0);
  session.consumed(cost(message));
  session.consumed(cost(message));
  assert.deepEqual(sent(session), []);
  session.consumed(cost(message));
  assert.deepEqual(sent(session), [make("Credit", { size: 3 * cost(message) })]);
  assert.throws(() => session.consumed(2 * cost(message)), RangeError);
  for (let i = 0; i < 4; i++) session.receive(encode(message), 0);
  refusedFor(session, "bad-message", /more data than there was credit/);
});

test("requests take turns, and Done waits behind the data of its request", () => {
  const session = asked();
  session.receive(encode(propose(R2)), 0);
  for (const block of [0, 1]) for (const request of [R1, R2]) session.send(codes(request, block));
  session.send(done(R1));
  const found = sent(session).map((message) => [message.type, message.request, message.block]);
  assert.deepEqual(found, [["Codes", R1, 0], ["Codes", R2, 0], ["Codes", R1, 1], ["Codes", R2, 1], ["Done", R1, undefined]]);
});

test("frames stop at the limit, but one goes", () => {
  const session = opened();
  for (let i = 0; i < 3; i++) session.send(codes(R1, i, 1000));
  assert.equal(session.frames(1).length, 1);
  assert.equal(session.frames(1100).length, 2);
});

test("a peer that does not read is lost", () => {
  const session = opened();
  for (let i = 0; i < 2000 && session.state === State.OPEN; i++) session.send(codes(R1, 0, limits.CODES_DATA_BYTES));
  assert.match(session.closeError.message, /does not read/);
});

test("a flood of pings, read and unread", () => {
  const session = opened();
  const ping = encode(make("Ping", { number: 7 }));
  for (let i = 0; i < limits.PENDING_PONGS; i++) session.receive(ping, 0);
  assert.deepEqual(new Set(types(sent(session))), new Set(["Pong"]));
  for (let i = 0; i < limits.PENDING_PONGS; i++) session.receive(ping, 0);
  assert.equal(session.state, State.OPEN);
  session.receive(ping, 0);
  assert.match(session.closeError.message, /pings without reading/);
});

// --- time -------------------------------------------------------------------------------------------

test("no hello in time", () => {
  const session = started();
  assert.equal(session.tick(0), 5);
  session.tick(4.9);
  assert.equal(session.state, State.GREETING);
  assert.equal(session.tick(5), Infinity);
  assert.match(session.closeError.message, /no hello within 5 s/);
});

test("pings at once, in silence, and now and then in traffic", () => {
  const session = opened();
  session.tick(0);
  assert.deepEqual(types(sent(session)), ["Ping"]);
  assert.equal(session.tick(0), 1);
  session.tick(1);
  assert.deepEqual(types(sent(session)), ["Ping"]);
  let pings = 0;
  for (let now = 1; now < 11; now += 0.5) {
    session.receive(encode(codes(R3, 0, 1)), now);
    session.tick(now);
    pings += sent(session).filter((message) => message.type === "Ping").length;
  }
  assert.equal(pings, 1);
});

test("silence, and a peer that is heard again", () => {
  const session = opened();
  for (let now = 0; now < 4; now += 0.5) session.tick(now);
  assert.equal(session.silent, false);
  session.tick(4);
  assert.equal(session.silent, true);
  session.receive(encode(make("Pong", { number: 1 })), 5);
  assert.equal(session.silent, false);
  for (let now = 5; now < 13; now += 0.5) session.tick(now);
  assert.equal(session.state, State.OPEN);
  session.tick(13);
  assert.match(session.closeError.message, /nothing heard for 8 s/);
});

test("a tab that stood still asks first", () => {
  const session = opened();
  session.tick(0);
  sent(session);
  session.tick(60);
  assert.equal(session.state, State.OPEN);
  assert.deepEqual(types(sent(session)), ["Ping"]);
});

test("round trips are smoothed, probes come back, unknown pongs are ignored", () => {
  const session = opened();
  const pong = (number, at) => session.receive(encode(make("Pong", { number })), at);
  session.tick(0);
  assert.deepEqual(pong(1, 0.2), []);
  assert.equal(session.roundTripS, 0.2);
  session.tick(5);
  pong(2, 6);
  assert.ok(Math.abs(session.roundTripS - 0.3) < 1e-9);
  assert.deepEqual(pong(99, 6), []);
  const number = session.ping(6, 100);
  assert.deepEqual(pong(number, 7), [make("Pong", { number })]);
  session.receive(encode(make("Throughput", { bps: 1e7 })), 7);
  assert.equal(session.receiveBps, 1e7);
});

// --- the end ----------------------------------------------------------------------------------------

test("a goodbye drops data, is written, and nothing follows", () => {
  const session = opened();
  session.send(codes(R1));
  session.goodbye("so\nlong");
  assert.deepEqual(session.receive(encode(codes(R1)), 0), []);
  assert.deepEqual(sent(session), [make("Goodbye", { text: "so long" })]);
  assert.equal(session.state, State.CLOSED);
  assert.equal(session.closeError, null);
  assert.throws(() => session.send(cancel(R1)), PeerLostError);
  session.consumed(0);
});

test("the last word has a deadline", () => {
  const session = opened();
  session.goodbye();
  assert.equal(session.tick(10), 11);
  assert.equal(session.tick(11), Infinity);
  assert.equal(session.state, State.CLOSED);
});

test("a lost channel, which does not hide a refusal", () => {
  const session = opened();
  session.lost("the Wi-Fi is gone");
  assert.equal(session.closeError.message, "lost peer b (bbbbbbbb): the Wi-Fi is gone");
  assert.ok(session.closeError instanceof PeerLostError);
  const other = opened();
  other.refuse("duplicate");
  other.lost("gone");
  assert.ok(other.closeError instanceof RefusedError);
});

test("random orders of damaged and valid frames never crash it", () => {
  const frames = [hello(B), propose(R1), propose(R2), codes(R1), codes(R2), cancel(R1), done(R2), accept(R1), make("Credit", { size: 100 }),
    make("Ping", { number: 1 }), make("Pong", { number: 1 }), make("Goodbye")].map(encode);
  let seed = 12345;
  const random = (most) => (seed = (seed * 48271) % 2147483647) % most;
  for (let run = 0; run < 300; run++) {
    const session = opened();
    for (let now = 0; session.state !== State.CLOSED && now < 60; now++) {
      const frame = frames[random(frames.length)].slice();
      if (random(6) === 0) frame[random(frame.length)] ^= 1 << random(8);
      for (const message of session.receive(frame, now)) if (cost(message)) session.consumed(cost(message));
      session.frames().forEach(decode);
      session.tick(now);
    }
    assert.ok([State.OPEN, State.CLOSED].includes(session.state));
    assert.ok(session.closeError === null || session.closeError.code);
  }
});
