// Caps and times, as in astra_mesh/limits.py, which says what each bounds; a test compares the two.

const KIB = 1024;
const MIB = 1024 * KIB;

// --- wire
export const FRAME_BYTES = 12 * MIB;
export const CODES_DATA_BYTES = 64 * KIB;
export const JOINED_CODES_BYTES = 4 * KIB;
export const WINDOW_BYTES = 16 * MIB;
export const SEND_QUEUE_BYTES = 32 * MIB;
export const NESTING_DEPTH = 12;
export const ARRAY_ITEMS = 262_144;
export const MAP_ITEMS = 256;
export const TEXT_BYTES = MIB;
export const NAME_CHARS = 64;
export const REASON_CHARS = 500;
export const TOKEN_TEXT_CHARS = 4096;
export const CONTROL_FRAME_BYTES = 4 * MIB;
export const CONTROL_ARRAY_ITEMS = 8_192;
export const FRAME_ITEMS = 327_680;
export const WINDOW_MIN_BYTES = 256 * KIB;
export const WINDOW_MAX_BYTES = 1024 * MIB;
export const MODELS_PER_PEER = 64;
export const CODEBOOKS_PER_MODEL = 16;
export const NAMES_PER_MODEL = 8;
export const LINKS_TOLD = 64;
export const HOST_CHARS = 255;
export const VECTOR_BYTES = 64 * KIB;

// --- requests
export const PROMPT_TOKENS = 131_072;
export const NEW_TOKENS = 131_072;
export const IMAGE_BYTES = 10 * MIB;
export const PEERS_PER_PLAN = 64;
export const BLOCKS = 512;
export const STAGES = 64;
export const RATE_CHANGES = 32;
export const REQUESTS_PER_PEER = 64;
export const OPEN_REQUESTS_PER_LINK = 256;
export const ENDED_REQUESTS = 1_024;
export const PROGRESS_MARKS = 1_024;
export const PROGRESS_S = 0.1;
export const EARLY_CODES_BYTES = 4 * MIB;
export const EARLY_CODES_S = 10.0;

// --- times
export const HELLO_TIMEOUT_S = 5.0;
export const HEARTBEAT_S = 1.0;
export const SILENCE_S = 4.0;
export const LOST_S = 8.0;
export const BACK_S = 3.0;
export const BACK_LOOK_S = 0.05;
export const CLOSE_TIMEOUT_S = 1.0;
export const CODES_PATIENCE = 20.0;
export const CODES_LEAST_S = 10.0;
export const CODES_TIMEOUT_S = 60.0;
export const LATE_PATIENCE = 4.0;
export const LATE_LEAST_S = 0.1;
export const LATE_START_S = 1.0;
export const RATE_LEAST_S = 0.03;
export const PLENTY_BPS = 300e6;
export const CONTRADICTED = 1.5;
export const PULSE_S = 20.0;
export const PULSE_AGAIN_S = 2.0;
export const PULSE_SHARE = 0.01;

// --- links
export const PENDING_PONGS = 256;
export const WRITE_BATCH_BYTES = 64 * KIB;
export const UNSENT_BYTES = 64 * KIB;
export const PROBE_BYTES = 96 * KIB;
export const PROBE_FAST_BYTES = 512 * KIB;
export const PROBE_FAST_BPS = 30e6;
export const PING_PADDING_BYTES = 64 * KIB;
export const PROBE_TIMEOUT_S = 3.0;
export const PROBE_EVERY_S = 60.0;
export const HANDSHAKE_S = 5.0;
export const BACKOFF_FIRST_S = 0.5;
export const BACKOFF_CAP_S = 15.0;
export const KNOWN_S = 900.0;

// --- trust
export const CERTIFICATE_BYTES = 2_048;
export const SIGNATURE_BYTES = 80;
export const MESH_ID_BYTES = 16;
export const ROSTER_ENTRIES = 256;
export const ROSTER_FRAME_BYTES = 640 * KIB;
export const ROSTER_GENERATIONS = 2 ** 31;
