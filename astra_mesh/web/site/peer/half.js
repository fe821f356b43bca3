// float16, which JavaScript has no arrays of.

const single = new Float32Array(1);
const word = new Uint32Array(single.buffer);

/** The bits of a float32 number as float16, rounded to nearest even. */
export function toHalf(value) {
  single[0] = value;
  const sign = (word[0] >>> 16) & 0x8000;
  const whole = word[0] & 0x7fffffff;
  if (whole >= 0x7f800000) return sign | (whole > 0x7f800000 ? 0x7e00 : 0x7c00);
  if (whole >= 0x477ff000) return sign | 0x7c00; // rounds beyond the largest
  if (whole < 0x38800000) return sign | rounded(Math.abs(single[0]) * 2 ** 24); // a multiple of 2 ** -24
  const odd = (whole >>> 13) & 1;
  return sign | ((whole - 0x38000000 + 0xfff + odd) >>> 13);
}

/** The number that the bits of a float16 say. */
export function fromHalf(half) {
  const sign = half & 0x8000 ? -1 : 1;
  const exponent = (half >>> 10) & 31;
  const part = half & 1023;
  if (exponent === 31) return part ? NaN : sign * Infinity;
  return exponent ? sign * 2 ** (exponent - 15) * (1 + part / 1024) : sign * part * 2 ** -24;
}

let all = null; // every float16 number, by its bits

/** The numbers of a Uint16Array of float16 bits. */
export function fromHalves(bits) {
  all ??= Float32Array.from({ length: 2 ** 16 }, (_, half) => fromHalf(half));
  const found = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; i++) found[i] = all[bits[i]];
  return found;
}

/** The nearest whole number; of two that are as near, the even one. */
export function rounded(value) {
  const floor = Math.floor(value);
  const rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}
