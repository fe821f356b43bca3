// The sealed channel: the vectors that Python runs too, and what is altered on its way.

import assert from "node:assert/strict";
import { test } from "node:test";

import { ProtocolError } from "../../astra_mesh/web/site/peer/errors.js";
import { base64, makeKey, peerId, publicPoint, sign, unbase64, verify } from "../../astra_mesh/web/site/peer/identity.js";
import { Answerer, Opener } from "../../astra_mesh/web/site/peer/sealed.js";
import { bytes, hex, thrown, vectors } from "./helpers.js";

const found = vectors("sealed.json");
const { opener, answerer, first, second, third } = found.handshake;
const speaker = (end) => ({ certificate: bytes(end.certificate), secret: bytes(end.key) });
const ephemeral = (end) => ({ secret: bytes(end.ephemeral), point: bytes(end.ephemeral_public) });
const makeOpener = () => new Opener(speaker(opener), answerer.id, ephemeral(opener));
const refuses = (work) => assert.ok(thrown(work) instanceof ProtocolError);

test("the messages and keys of the vectors", () => {
  const one = makeOpener();
  assert.equal(hex(one.first), first);
  assert.equal(peerId(bytes(opener.certificate)), opener.id);
  const { channel } = one.finish(bytes(second));
  for (const { sender, frame, sealed } of found.frames) {
    if (sender === "opener") assert.equal(hex(channel.seal(bytes(frame))), sealed);
    else assert.equal(hex(channel.open(bytes(sealed))), frame);
  }
});

test("the vectors' signatures are valid, whether high or low", () => {
  const at = hex(publicPoint(bytes(opener.certificate)));
  for (const { public: point, data, signature } of found.signatures) {
    assert.equal(point, at);
    assert.ok(verify(bytes(opener.certificate), bytes(signature), bytes(data)));
    assert.ok(!verify(bytes(answerer.certificate), bytes(signature), bytes(data)));
    assert.ok(!verify(bytes(opener.certificate), bytes(signature).slice(1), bytes(data)));
  }
  assert.equal(third.length, 128);
});

for (const { name, second: damaged } of found.refused) {
  test(`an answer with ${name}`, () => refuses(() => makeOpener().finish(bytes(damaged))));
}

test("every bit of an answer counts", () => {
  const whole = bytes(second);
  for (let at = 0; at < whole.length; at += 7) {
    const damaged = whole.slice();
    damaged[at] ^= 1 << (at % 8);
    refuses(() => makeOpener().finish(damaged));
  }
  for (let size = 0; size < whole.length; size += 11) refuses(() => makeOpener().finish(whole.slice(0, size)));
});

test("a certificate that is damaged anywhere is read or refused, never more", () => {
  const whole = bytes(opener.certificate);
  for (let bit = 0; bit < 8 * whole.length; bit++) {
    const damaged = whole.slice();
    damaged[bit >> 3] ^= 1 << (bit & 7);
    try {
      assert.equal(publicPoint(damaged).length, 65);
    } catch (error) {
      assert.ok(error instanceof ProtocolError, error.stack);
    }
  }
  for (let size = 0; size < whole.length; size++) refuses(() => publicPoint(whole.slice(0, size)));
});

/** Two ends of this language with a channel. */
function joined() {
  const one = new Opener(speaker(opener), answerer.id);
  const other = new Answerer(speaker(answerer), one.first);
  assert.equal(peerId(other.certificate), opener.id);
  const { third, channel } = one.finish(other.second);
  return [channel, other.finish(third)];
}

test("both ends in this language", () => {
  const [a, b] = joined();
  for (let i = 0; i < 3; i++) {
    assert.deepEqual(b.open(a.seal(Uint8Array.of(i, 2))), Uint8Array.of(i, 2));
    assert.deepEqual(a.open(b.seal(Uint8Array.of(i))), Uint8Array.of(i));
  }
});

test("what was altered, repeated, left out or turned round does not open", () => {
  let [a, b] = joined();
  const sealed = a.seal(new Uint8Array(5));
  const damaged = sealed.slice();
  damaged[3] ^= 1;
  refuses(() => b.open(damaged));
  refuses(() => a.open(sealed)); // back to its sender
  b.open(sealed);
  refuses(() => b.open(sealed));
  a.seal(new Uint8Array(1));
  refuses(() => b.open(a.seal(new Uint8Array(1))));
  [, b] = joined();
  refuses(() => b.open(sealed)); // of another channel
  refuses(() => b.open(new Uint8Array(3)));
});

test("whoever has the certificate but not its key gets no channel", () => {
  const thief = { certificate: bytes(opener.certificate), secret: makeKey().secret };
  const one = new Opener(thief, answerer.id);
  const other = new Answerer(speaker(answerer), one.first);
  refuses(() => other.finish(one.finish(other.second).third));
  refuses(() => other.finish(new Uint8Array(64)));
});

test("keys of one's own", () => {
  const { secret, point } = makeKey();
  assert.equal(point.length, 65);
  assert.equal(sign(secret, Uint8Array.of(1)).length, 64);
  assert.deepEqual(unbase64(base64(point)), point);
});
