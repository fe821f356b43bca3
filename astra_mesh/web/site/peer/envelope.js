// What a tab asks its host about other peers' requests, sealed: the page may have come over plain HTTP
// (astra_mesh/web/tab_envelope.py; docs/browser-peer.md).

import { chacha20poly1305 } from "../vendor/noble/ciphers/chacha.js";
import { hkdf } from "../vendor/noble/hashes/hkdf.js";
import { sha256 } from "../vendor/noble/hashes/sha2.js";
import { FetchError } from "./errors.js";
import { agree, joined, makeKey } from "./identity.js";

const ABOUT = new TextEncoder().encode("astra-mesh tab 1 rows");
const NONCE = new Uint8Array(12); // each key seals one message

/** The message that asks `path` of a host with this point, and open(answer): its body. */
export function envelope(path, body, point, key = makeKey()) {
  const about = new TextEncoder().encode(path);
  const both = hkdf(sha256, agree(key.secret, point), sha256(joined(key.point, point)), ABOUT, 64);
  const [asking, answering] = [both.slice(0, 32), both.slice(32)];
  const message = joined(key.point, chacha20poly1305(asking, NONCE, about).encrypt(body));
  const open = (answer) => {
    try {
      return chacha20poly1305(answering, NONCE, about).decrypt(answer);
    } catch {
      throw new FetchError("an answer of the peer that serves this page was altered on its way");
    }
  };
  return { message, open };
}
