// Who a tab is: an EC P-256 key that it makes, and the certificate that its host's device signs for it.
// Also in pages without a secure context, where browsers have no WebCrypto.

import { p256 } from "../vendor/noble/curves/nist.js";
import { sha256 } from "../vendor/noble/hashes/sha2.js";
import { ProtocolError } from "./errors.js";
import { CERTIFICATE_BYTES } from "./limits.js";

const EC_P256 = hexed("301306072a8648ce3d020106082a8648ce3d030107"); // algorithm of a public key
const POINT_BYTES = 65;
export const SIGNATURE_BYTES = 64; // r and s, raw

/** A fresh key: { secret (32 bytes), point (65 bytes, uncompressed) }. */
export function makeKey() {
  const secret = p256.utils.randomSecretKey();
  return { secret, point: p256.getPublicKey(secret, false) };
}

/** The id of a peer: SHA-256 of its certificate (DER), as hexadecimal digits. */
export const peerId = (certificate) => hex(sha256(certificate));

/** ECDSA with SHA-256, r and s of 32 bytes each. */
export const sign = (secret, data) => p256.sign(data, secret, { prehash: true, format: "compact" });

/** Whether `signature` of `data` is by the key of a certificate; ProtocolError if there is no such key. */
export function verify(certificate, signature, data) {
  const point = publicPoint(certificate);
  try {
    return p256.verify(signature, data, point, { prehash: true, lowS: false, format: "compact" });
  } catch {
    return false; // not even numbers of the right size
  }
}

/** What two ends share: the x coordinate (32 bytes). ProtocolError if the other's point is none. */
export function agree(secret, point) {
  try {
    return p256.getSharedSecret(secret, point, true).slice(1);
  } catch {
    throw new ProtocolError("a key that is no point of P-256");
  }
}

/** The public key (65 bytes) in a certificate (DER, RFC 5280); ProtocolError if there is none of P-256. */
export function publicPoint(certificate) {
  if (certificate.length > CERTIFICATE_BYTES) throw new ProtocolError("a certificate that is too large");
  const whole = open(certificate, 0, certificate.length, 0x30);
  if (whole.next !== certificate.length) throw bad();
  const body = open(certificate, whole.start, whole.next, 0x30);
  let at = body.start;
  if (certificate[at] === 0xa0) at = open(certificate, at, body.next, 0xa0).next; // version
  for (const tag of [0x02, 0x30, 0x30, 0x30, 0x30]) at = open(certificate, at, body.next, tag).next; // serial ... subject
  const key = open(certificate, at, body.next, 0x30);
  const algorithm = open(certificate, key.start, key.next, 0x30);
  const found = open(certificate, algorithm.next, key.next, 0x03);
  const point = certificate.slice(found.start + 1, found.next);
  if (!same(certificate.slice(key.start, algorithm.next), EC_P256)) throw bad();
  if (certificate[found.start] !== 0 || point.length !== POINT_BYTES || point[0] !== 4) throw bad();
  return point;
}

/** Where the contents of one value of DER begin, and where the next value does. */
function open(data, at, end, tag) {
  if (at + 2 > end || data[at] !== tag) throw bad();
  let size = data[at + 1];
  let start = at + 2;
  if (size >= 0x80) {
    const width = size - 0x80;
    if (width < 1 || width > 2 || start + width > end) throw bad();
    size = 0;
    for (let i = 0; i < width; i++) size = 256 * size + data[start++];
  }
  if (start + size > end) throw bad();
  return { start, next: start + size };
}

const bad = () => new ProtocolError("a certificate that cannot be read");

// --- bytes ----------------------------------------------------------------------------------------

export const same = (a, b) => a.length === b.length && a.every((byte, i) => byte === b[i]);
export const hex = (data) => Array.from(data, (byte) => byte.toString(16).padStart(2, "0")).join("");

export function hexed(text) {
  return Uint8Array.from(text.match(/../g) ?? [], (digits) => parseInt(digits, 16));
}

export function joined(...parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const base64 = (data) => btoa(String.fromCharCode(...data));
export const unbase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
