// Tensors in one string of bytes, as astra_mesh/browser/tensors.py writes them and a manifest describes them.

import { fromHalves } from "./half.js";

const KINDS = { f2: Uint16Array, f4: Float32Array, i4: Int32Array, i1: Int8Array };

/** One tensor: { data: Float32Array or Int32Array, shape }; undefined where there is none of that name. */
export function tensorOf(described, bytes, name) {
  const found = stored(described, bytes, name);
  const rest = stored(described, bytes, `${name}.rest`);
  if (!rest) return found;
  const step = stored(described, bytes, `${name}.step`).data;
  const [, columns] = found.shape;
  for (let i = 0; i < rest.data.length; i++) found.data[i] += rest.data[i] * step[Math.floor(i / columns)];
  return found;
}

function stored({ tensors }, bytes, name) {
  const about = tensors.find((one) => one.name === name);
  if (!about) return undefined;
  const { dtype, shape, offset } = about;
  const count = shape.reduce((product, size) => product * size, 1);
  const data = new KINDS[dtype](bytes.slice(offset, offset + count * KINDS[dtype].BYTES_PER_ELEMENT).buffer);
  return { data: dtype === "f2" ? fromHalves(data) : data, shape };
}
