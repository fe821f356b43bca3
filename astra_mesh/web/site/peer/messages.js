// Every message between peers (docs/protocol.md), and frames to messages and back: the only place where
// bytes of a peer are parsed. A message is an object with `type` (its name) and its fields, named as in
// the protocol; request ids are BigInts, bytes are Uint8Arrays.

import { ProtocolError } from "./errors.js";
import {
  below, between, bool, bytes, float, int, isId, isIdOrEmpty, line, list, maybe, oneOf, request, size, struct, such, table, text, upTo,
} from "./fields.js";
import * as limits from "./limits.js";
import { KIND, Reader, Writer } from "./msgpack.js";

export { sanitise } from "./fields.js";
export const PROTOCOL_VERSION = 1;
export const MAGIC = "astra-mesh";

/** Why a link or a request is refused. */
export const REASONS = {
  "protocol-version": "the two ends speak different protocol versions; update the older one",
  "bad-message": "a message was malformed or not allowed at this point",
  self: "this is the peer itself",
  duplicate: "there is already a link between these two peers",
  "wrong-peer": "another peer answers at this address than was expected",
  unpaired: "the two devices are not paired any more; `astra-mesh pair` pairs them again",
  "unknown-model": "the peer does not have that model",
  "unknown-codebook": "the peer does not have that codebook for the model",
  "bad-plan": "the plan does not fit the model or the peers",
  "not-linked": "the peer has no link to another peer of the plan",
  busy: "the peer has as many requests as it takes; try again later",
  leaving: "the peer is about to leave the mesh",
  internal: "the peer met an error of its own",
};

const EMPTY = new Uint8Array(0);
const TOKEN_LIMIT = 2 ** 31;
const HOUR_US = 3_600_000_000;
const MARKS = 6;

const id = such(text, isId);
const idOrEmpty = such(text, isIdOrEmpty);
const name = such(text, line(limits.NAME_CHARS));
const word = such(text, line(32));
const wordOrEmpty = such(text, line(32, { empty: true }));
const label = such(text, line(128, { empty: true }));
const sentence = such(text, upTo(limits.REASON_CHARS));
const reason = oneOf(...Object.keys(REASONS));
const task = oneOf("generate", "classify", "embed");
const position = such(int, between(0, limits.PROMPT_TOKENS));
const token = such(int, below(TOKEN_LIMIT));
const tokens = list(token, limits.PROMPT_TOKENS);
const rates = list(int, limits.STAGES);
const times = list(float, limits.STAGES);
const sized = (most) => such(bytes, size(most));

// --- parts of messages ----------------------------------------------------------------------------

const Timing = struct("Timing", {
  fixed_s: [float], per_token_s: [float], per_pair_s: [float],
  encode_token_s: [float, 0], decode_token_s: [float, 0], head_s: [float, 0], step_s: [float, 0],
});
const CodebookOffer = struct("CodebookOffer", {
  id: [id], codec: [word], rates: [rates], default_rate: [int], encode_token_s: [times, []], decode_token_s: [times, []],
  project_token_s: [times, []],
}, {
  fits: (book) => book.encode_token_s.length === book.decode_token_s.length && [0, book.rates.length].includes(book.encode_token_s.length)
    && [0, book.encode_token_s.length].includes(book.project_token_s.length),
});
const ModelOffer = struct("ModelOffer", {
  id: [id], name: [name], family: [word], tasks: [list(task, 3)], codebooks: [list(CodebookOffer, limits.CODEBOOKS_PER_MODEL), []],
  timing: [maybe(Timing), null], loaded: [bool, false], precision: [word, "fp32"], divergence: [float, 0],
  also: [list(name, limits.NAMES_PER_MODEL), []],
});
const LinkInfo = struct("LinkInfo", {
  peer: [id], round_trip_s: [maybe(float), null], send_bps: [maybe(float), null], host: [such(text, line(limits.HOST_CHARS, { empty: true })), ""], port: [such(int, below(65_536)), 0],
});
const Device = struct("Device", {
  host: [label], cores: [float], host_cores: [float], threads: [int], system: [label, ""], memory_bytes: [int, 0], software: [label, ""],
});
const RosterEntry = struct("RosterEntry", {
  certificate: [such(bytes, (value) => value.length > 0 && value.length <= limits.CERTIFICATE_BYTES)], name: [name],
  generation: [such(int, between(1, limits.ROSTER_GENERATIONS))], member: [bool], until: [int], by: [id], signature: [sized(limits.SIGNATURE_BYTES)],
});
const Shard = struct("Shard", { peer: [id], start: [position], stop: [position] }, { fits: (shard) => shard.start <= shard.stop });
const LinkRate = struct("LinkRate", { sender: [id], receiver: [id], stages: [such(int, between(0, limits.STAGES))] });
const Plan = struct("Plan", {
  model: [id], codec: [word], codebook: [idOrEmpty],
  shards: [such(list(Shard, limits.PEERS_PER_PLAN), (value) => value.length >= 1)],
  rates: [list(LinkRate, limits.PEERS_PER_PLAN * (limits.PEERS_PER_PLAN - 1))],
  answering: [id], class_token: [wordOrEmpty], predicted_s: [float, 0], late: [oneOf("wait", "adapt", "degrade"), "wait"],
});
const Sampling = struct("Sampling", {
  max_new_tokens: [such(int, between(0, limits.NEW_TOKENS)), 64], temperature: [float, 0],
  top_k: [such(int, below(TOKEN_LIMIT)), 0], top_p: [float, 1], seed: [maybe(int), null],
});
const Inputs = struct("Inputs", { tokens: [tokens, []], token_types: [tokens, []], image: [sized(limits.IMAGE_BYTES), EMPTY] });
/** Pairs of a block and the bits per token from it on. */
const rateChanges = such(list(int, 2 * (limits.RATE_CHANGES + limits.STAGES)), (value) =>
  value.length % 2 === 0 && value.every((one, i) => (i % 2 ? one > 0 && one <= TOKEN_LIMIT : one < limits.BLOCKS)),
);
const PeerReport = struct("PeerReport", {
  peer: [id], tokens: [position], compute_s: [float], encode_s: [float], decode_s: [float], wait_s: [float], finished_s: [float],
  sent_bytes: [table(int, isId, limits.PEERS_PER_PLAN), {}], decode_steps: [such(int, between(0, limits.NEW_TOKENS)), 0],
  late_parts: [such(int, between(0, limits.BLOCKS * limits.PEERS_PER_PLAN)), 0], rates: [table(rateChanges, isId, limits.PEERS_PER_PLAN), {}],
  precision: [wordOrEmpty, ""],
});

/** Groups of four: microseconds, mark, block, part. */
function marksFit(value) {
  const highest = [HOUR_US, MARKS - 1, limits.BLOCKS - 1, limits.PEERS_PER_PLAN];
  return value.length % 4 === 0 && value.every((one, i) => one <= highest[i % 4]);
}

// --- messages: number -> struct, and the largest frame --------------------------------------------

const SMALL = 16 * 1024;
const positional = { positional: true };
const TYPES = {
  0: [struct("Hello", {
    magic: [such(text, (value) => value === MAGIC)], version: [int], peer: [id], name: [name], role: [oneOf("peer", "client")],
    window_bytes: [such(int, between(limits.WINDOW_MIN_BYTES, limits.WINDOW_MAX_BYTES))], device: [maybe(Device), null],
    models: [list(ModelOffer, limits.MODELS_PER_PEER), []], port: [such(int, below(65_536)), 0], via: [idOrEmpty, ""],
  }), limits.CONTROL_FRAME_BYTES],
  1: [struct("LinkRefused", { reason: [reason], text: [sentence, ""] }), SMALL],
  2: [struct("Goodbye", { text: [sentence, ""] }), SMALL],
  3: [struct("Ping", { number: [int], padding: [sized(limits.PING_PADDING_BYTES), EMPTY] }, positional), limits.PING_PADDING_BYTES + 64],
  4: [struct("Pong", { number: [int] }, positional), 64],
  5: [struct("Credit", { size: [such(int, between(1, limits.WINDOW_MAX_BYTES))] }, positional), 64],
  6: [struct("Status", {
    models: [list(ModelOffer, limits.MODELS_PER_PEER)], links: [list(LinkInfo, limits.LINKS_TOLD), []],
  }), limits.CONTROL_FRAME_BYTES],
  7: [struct("Throughput", { bps: [such(float, (value) => value > 0)] }, positional), 64],
  8: [struct("Roster", {
    mesh: [such(bytes, (value) => value.length === limits.MESH_ID_BYTES)], entries: [list(RosterEntry, limits.ROSTER_ENTRIES)],
  }), limits.ROSTER_FRAME_BYTES],
  10: [struct("Prepare", { request: [request], model: [id] }), SMALL],
  11: [struct("Propose", {
    request: [request], task: [task], plan: [Plan], inputs: [Inputs], sampling: [maybe(Sampling), null], watch: [bool, false],
  }), limits.FRAME_BYTES],
  12: [struct("Accept", { request: [request] }), SMALL],
  13: [struct("Refuse", { request: [request], reason: [reason], text: [sentence, ""] }), SMALL],
  14: [struct("Codes", {
    request: [request], block: [such(int, below(limits.BLOCKS))], stage: [such(int, below(limits.STAGES))], first: [position],
    count: [such(int, between(1, limits.PROMPT_TOKENS))], data: [sized(limits.CODES_DATA_BYTES)],
  }, { ...positional, fits: (codes) => codes.first + codes.count <= limits.PROMPT_TOKENS }), limits.CODES_DATA_BYTES + 64],
  15: [struct("Pooled", {
    request: [request], weight: [float], vector: [such(sized(limits.VECTOR_BYTES), (value) => value.length % 4 === 0)],
  }, positional), limits.VECTOR_BYTES + 64],
  16: [struct("Token", {
    request: [request], index: [such(int, below(limits.NEW_TOKENS))], token: [token], text: [such(text, upTo(limits.TOKEN_TEXT_CHARS)), ""],
  }, positional), 4 * limits.TOKEN_TEXT_CHARS + 64],
  17: [struct("Done", { request: [request], report: [PeerReport] }), SMALL],
  18: [struct("Cancel", { request: [request], text: [sentence, ""] }), SMALL],
  19: [struct("Fail", { request: [request], code: [word], text: [sentence], retry_s: [float, 0] }), SMALL],
  20: [struct("Progress", {
    request: [request], marks: [such(list(int, 4 * limits.PROGRESS_MARKS), marksFit)],
  }, positional), SMALL],
};
/** What only clients say and hear; a tab has none. */
const OF_CLIENTS = { 30: "Ask", 31: "Planned", 32: "Result", 33: "ListPeers", 34: "Peers", 35: "Subscribe", 36: "Event", 37: "Refer" };
const NUMBERS = Object.fromEntries(Object.entries(TYPES).map(([number, [kind]]) => [kind.name, Number(number)]));
const HEAD = 0x92; // an array of two

/** A message; what is left out has its default. */
export const make = (type, fields = {}) => ({ type, ...TYPES[NUMBERS[type]][0].complete(fields) });

/** The frame of a message; ProtocolError if it breaks a limit: every peer would refuse it. */
export function encode(message) {
  const number = NUMBERS[message.type];
  const [kind, most] = TYPES[number];
  kind.check(message);
  const writer = new Writer();
  writer.array(2);
  writer.int(number);
  kind.write(writer, message);
  const frame = writer.done();
  if (frame.length > most) throw new ProtocolError(`cannot send ${kind.name}: ${frame.length} bytes are too many`);
  return frame;
}

/** The message of a frame; ProtocolError for anything else than a well-formed one within all limits. */
export function decode(frame) {
  const [kind, reader] = open(frame);
  try {
    const message = kind.read(reader, limits.NESTING_DEPTH);
    reader.end();
    kind.check(message);
    return { type: kind.name, ...message };
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error;
    throw new ProtocolError(`malformed ${kind.name}: ${error.message}`);
  }
}

const Embed = struct("Embed", { inputs: [Inputs], start: [position], stop: [position] });

/** What asks the host for the embedded rows of the positions `start` to `stop`. */
export function embedBody(inputs, start, stop) {
  const writer = new Writer();
  Embed.write(writer, { inputs, start, stop });
  return writer.done();
}

/** The protocol version that a hello of any version states; null if it is no hello. */
export function helloVersion(frame) {
  try {
    const [kind, reader] = open(frame);
    if (kind.name !== "Hello") return null;
    let version = null;
    const known = new Set();
    for (let left = reader.map(limits.NESTING_DEPTH); left > 0; left--) {
      const key = reader.key(known);
      known.add(key);
      if (key === "version" && reader.kind() === KIND.int) version = reader.int();
      else reader.skip(limits.NESTING_DEPTH - 1);
    }
    reader.end();
    return version;
  } catch (error) {
    if (error instanceof ProtocolError) return null;
    throw error;
  }
}

/** The kind of a frame, its size judged, and a reader of its body. */
function open(frame) {
  if (frame.length > limits.FRAME_BYTES) throw new ProtocolError(`a frame of ${frame.length} bytes; ${limits.FRAME_BYTES} are allowed`);
  if (frame.length < 3 || frame[0] !== HEAD) throw new ProtocolError("a frame that is no array of type and body");
  const number = frame[1];
  if (Object.hasOwn(OF_CLIENTS, number)) throw new ProtocolError(`${OF_CLIENTS[number]} does not come from a peer`);
  if (!Object.hasOwn(TYPES, number)) throw new ProtocolError(`unknown message type ${number}`);
  const [kind, most] = TYPES[number];
  if (frame.length > most) throw new ProtocolError(`${frame.length} bytes are too many for ${kind.name}`);
  const large = kind.name === "Propose";
  return [kind, new Reader(frame, large ? limits.ARRAY_ITEMS : limits.CONTROL_ARRAY_ITEMS)];
}
