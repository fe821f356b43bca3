// Copies what the page's compute peer needs of the installed packages: node copy.mjs NODE_MODULES TARGET
//
// Browsers load modules by address only, and workers know no import map. So `import "@noble/hashes/sha2.js"`
// becomes a relative address, and every file keeps its path within its package, without the "@".

import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join, posix } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const MODULES = [
  "@noble/curves/nist.js",
  "@noble/ciphers/chacha.js",
  "@noble/hashes/sha2.js",
  "@noble/hashes/hkdf.js",
];
// Loaded by addresses that they put together themselves, so they are copied as they are.
const WHOLE = [
  "onnxruntime-web/dist/ort.wasm.min.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
  // The same with WebGPU; only pages that may use a GPU load it.
  "onnxruntime-web/dist/ort.jspi.min.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.jspi.mjs",
  "onnxruntime-web/dist/ort-wasm-simd-threaded.jspi.wasm",
];
const LICENSES = { "onnxruntime-web": "ort-license.txt" }; // where the package has no such file
const IMPORT = /^(import|export)\b[^'"`;]*?\bfrom\s*(['"])([^'"]+)\2|^import\s*(['"])([^'"]+)\4/gm;

const [from, to] = process.argv.slice(2);
if (!from || !to) throw new Error("usage: node copy.mjs NODE_MODULES TARGET");
const here = dirname(fileURLToPath(import.meta.url));
const target = (path) => path.replace(/^@/, "");
const packageOf = (path) => path.split("/").slice(0, path.startsWith("@") ? 2 : 1).join("/");

function write(path, data) {
  const file = join(to, target(path));
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, data);
}

/** A module and all that it imports. */
function copyModule(path, done) {
  if (done.has(path)) return;
  done.add(path);
  const text = readFileSync(join(from, path), "utf8");
  write(
    path,
    text.replace(/^\/\/# sourceMappingURL=.*$/gm, "").replaceAll(IMPORT, (whole, _1, _2, a, _4, b) => {
      const name = a ?? b;
      const found = name.startsWith(".") ? posix.join(posix.dirname(path), name) : name;
      copyModule(found, done);
      let relative = posix.relative(posix.dirname(target(path)), target(found));
      if (!relative.startsWith(".")) relative = `./${relative}`;
      return whole.replace(name, relative);
    }),
  );
}

rmSync(to, { recursive: true, force: true });
const done = new Set();
for (const path of MODULES) copyModule(path, done);
for (const path of WHOLE) {
  const data = readFileSync(join(from, path));
  write(path, data);
  if (path.endsWith(".wasm")) write(`${path}.gz`, gzipSync(data, { level: 9 }));
}
const versions = {};
for (const name of new Set([...MODULES, ...WHOLE].map(packageOf))) {
  const own = join(from, name, "LICENSE");
  copyFileSync(existsSync(own) ? own : join(here, LICENSES[name]), join(to, target(name), "LICENSE"));
  versions[name] = JSON.parse(readFileSync(join(from, name, "package.json"), "utf8")).version;
}
write("versions.json", `${JSON.stringify(versions, null, 2)}\n`);
