// Codes as a dense string of bits, exactly as astra_mesh/wire/bits.py: code after code, lowest bit first.

/** Length in bytes of so many codes. */
export const packedBytes = (count, bits) => Math.ceil((count * bits) / 8);

/** Codes (each below 2 ** bits) as bytes; the last byte is filled up with zeros. */
export function pack(codes, bits) {
  if (bits === 8) return Uint8Array.from(codes);
  const found = new Uint8Array(packedBytes(codes.length, bits));
  let held = 0;
  let filled = 0;
  let at = 0;
  for (const code of codes) {
    held |= code << filled;
    filled += bits;
    for (; filled >= 8; filled -= 8, held >>>= 8) found[at++] = held & 255;
  }
  if (filled) found[at] = held;
  return found;
}

/** `count` codes of packed bytes: a Uint8Array up to 8 bits, else a Uint16Array. Errors say what is wrong. */
export function unpack(bytes, count, bits) {
  const due = packedBytes(count, bits);
  if (bytes.length !== due) throw new Error(`${bytes.length} bytes of codes where ${due} are due`);
  const found = bits <= 8 ? new Uint8Array(count) : new Uint16Array(count);
  const mask = 2 ** bits - 1;
  let held = 0;
  let filled = 0;
  let at = 0;
  for (let i = 0; i < count; i++) {
    for (; filled < bits; filled += 8) held |= bytes[at++] << filled;
    found[i] = held & mask;
    held >>>= bits;
    filled -= bits;
  }
  if (held) throw new Error("the bits behind the last code are not zero");
  return found;
}
