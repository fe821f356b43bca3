// Frames: the vectors that Python runs too, and damaged ones.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ProtocolError } from "../../astra_mesh/web/site/peer/errors.js";
import { decode, encode, helloVersion, make, sanitise } from "../../astra_mesh/web/site/peer/messages.js";
import { line } from "../../astra_mesh/web/site/peer/fields.js";
import * as limits from "../../astra_mesh/web/site/peer/limits.js";
import { A, bytes, codes, done, hello, hex, R2, thrown, vectors } from "./helpers.js";

const OF_CLIENTS = new Set(["Ask", "Planned", "Result", "ListPeers", "Peers", "Subscribe", "Event", "Refer"]);

/** The body of a message as the vector file writes it. */
function plain(value) {
  if (value instanceof Uint8Array) return { hex: hex(value) };
  if (typeof value === "bigint") return Number(value);
  if (Array.isArray(value)) return value.map(plain);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]));
}

for (const { name, message, body, frame } of vectors("protocol.json")) {
  test(`vector: ${name}`, () => {
    if (OF_CLIENTS.has(message)) {
      assert.match(thrown(() => decode(bytes(frame))).message, new RegExp(`${message} does not come from a peer`));
      return;
    }
    const { type, ...found } = decode(bytes(frame));
    assert.equal(type, message);
    const asBody = Array.isArray(body) ? Object.values(plain(found)) : plain(found);
    assert.deepEqual(asBody, body);
    assert.equal(hex(encode({ type, ...found })), frame);
  });
}

test("every prefix of every vector is refused by name", () => {
  for (const { frame } of vectors("protocol.json")) {
    const whole = bytes(frame);
    for (let size = 0; size < whole.length; size++) {
      assert.ok(thrown(() => decode(whole.subarray(0, size))) instanceof ProtocolError);
    }
    assert.ok(thrown(() => decode(Uint8Array.of(...whole, 0))) instanceof ProtocolError);
  }
});

test("a bit changed gives a message or a refusal by name, never a crash", () => {
  let taken = 0;
  for (const { frame } of vectors("protocol.json")) {
    const whole = bytes(frame);
    for (let bit = 0; bit < 8 * whole.length; bit += 3) {
      const damaged = whole.slice();
      damaged[bit >> 3] ^= 1 << (bit & 7);
      try {
        encode(decode(damaged));
        taken++;
      } catch (error) {
        assert.ok(error instanceof ProtocolError, error.stack);
      }
      helloVersion(damaged);
    }
  }
  assert.ok(taken > 500); // most of a hash or a name is as good as another
});

test("ids of 63 bits survive, and no more than 63", () => {
  for (const request of [0n, 5n, 2n ** 32n, R2, 2n ** 63n - 1n]) {
    assert.equal(decode(encode(make("Accept", { request }))).request, request);
  }
  assert.ok(thrown(() => encode(make("Accept", { request: 2n ** 63n }))) instanceof ProtocolError);
});

const head = (type) => [0x92, type];
const text = (value) => [0xa0 | value.length, ...Buffer.from(value)];
const HOSTILE = {
  "an array of empty maps that would take 300 MB": [...head(11), 0xdd, 0x01, 0x00, 0x00, 0x00, ...Array(1000).fill(0x80)],
  "a map of four thousand million": [...head(2), 0xdf, 0xff, 0xff, 0xff, 0xff],
  "a text longer than the frame": [...head(2), 0x81, ...text("text"), 0xdb, 0x7f, 0xff, 0xff, 0xff],
  "nested beyond the limit": [...head(2), 0x82, ...text("text"), 0xa0, ...text("x"), ...Array(40).fill(0x91), 0xc0],
  "a key twice": [...head(2), 0x82, ...text("text"), 0xa0, ...text("text"), 0xa0],
  "a key that is a number": [...head(2), 0x81, 1, 0xa0],
  "a key of an unknown map twice": [...head(2), 0x81, ...text("x"), 0x82, ...text("a"), 1, ...text("a"), 1],
  "text that is no UTF-8": [...head(2), 0x81, ...text("text"), 0xa2, 0xc3, 0x28],
  "half a surrogate": [...head(2), 0x81, ...text("text"), 0xa3, 0xed, 0xa0, 0x80],
  "an extension": [...head(2), 0x81, ...text("x"), 0xd4, 1, 1],
  "a byte that means nothing": [...head(2), 0x81, ...text("x"), 0xc1],
  "not a number": [...head(7), 0x91, 0xca, 0x7f, 0xc0, 0, 0],
  "infinity": [...head(7), 0x91, 0xca, 0x7f, 0x80, 0, 0],
  "a number below nothing in a field that nobody knows": [...head(2), 0x81, ...text("x"), 0xff],
  "text for bytes": [...head(3), 0x92, 1, 0xa0],
  "a number for a text": [...head(2), 0x81, ...text("text"), 1],
  "a boolean for an integer": [...head(4), 0x91, 0xc3],
  "nothing for an integer": [...head(4), 0x91, 0xc0],
  "a fraction for an integer": [...head(4), 0x91, 0xca, 0x3f, 0xc0, 0, 0],
  "too few fields": [...head(14), 0x93, 1, 1, 1],
  "an unknown type": [...head(99), 0x80],
  "__proto__ as a peer that was sent bytes": [...head(17), 0x82, ...text("request"), 1, ...text("report"), 0x81, ...text("sent_bytes"), 0x81, ...text("__proto__"), 1],
};
for (const [name, frame] of Object.entries(HOSTILE)) {
  test(`hostile: ${name}`, () => assert.ok(thrown(() => decode(Uint8Array.from(frame))) instanceof ProtocolError));
}

test("unknown keys are ignored, also __proto__", () => {
  const message = decode(Uint8Array.from([...head(2), 0x82, ...text("__proto__"), 0x81, ...text("text"), 0xa1, 0x78, ...text("text"), 0xa0]));
  assert.deepEqual(message, { type: "Goodbye", text: "" });
  assert.equal({}.text, undefined);
});

test("a frame of its type's limit passes, one byte more does not", () => {
  const data = new Uint8Array(limits.CODES_DATA_BYTES);
  assert.equal(decode(encode(codes(R2, 0, data.length))).data.length, data.length);
  assert.ok(thrown(() => encode(codes(R2, 0, data.length + 1))) instanceof ProtocolError);
  assert.match(thrown(() => decode(new Uint8Array(limits.FRAME_BYTES + 1))).message, /are allowed/);
  const long = Uint8Array.from([...head(14), ...new Uint8Array(limits.CODES_DATA_BYTES + 65)]);
  assert.match(thrown(() => decode(long)).message, /too many for Codes/);
});

test("the version of a hello of any version", () => {
  assert.equal(helloVersion(encode(hello(A))), 1);
  assert.equal(helloVersion(Uint8Array.from([...head(0), 0x82, ...text("version"), 7, ...text("new"), 0x93, 1, 2, 3])), 7);
  assert.equal(helloVersion(encode(done(R2))), null);
  assert.equal(helloVersion(Uint8Array.from([...head(0), 0x81, ...text("version"), 0xa1, 0x37])), null);
});

test("text for people is one printable line, cut with dots", () => {
  assert.equal(sanitise("a\u202eb\nc\u0000"), "a b c");
  assert.equal(sanitise("x".repeat(600)).length, 500);
  assert.ok(sanitise("x".repeat(600)).endsWith("xx..."));
  assert.equal([...sanitise("\u{1f600}".repeat(600), 10)].length, 10);
  assert.ok(line(64)("\u{1f600}".repeat(64)));
  assert.ok(!line(64)("\u{1f600}".repeat(65)));
  assert.ok(!line(64)(""));
  assert.ok(!line(64)("no\u00a0break"));
});
