"""Every cap and timeout, with its unit in the name and the worst case that it bounds beside it."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# --- wire -----------------------------------------------------------------------------------------
# One WebSocket frame holds one message. The largest is a proposal with a compressed image; codes
# and pooled vectors are cut to CODES_DATA_BYTES before they are sent.
FRAME_BYTES: Final = 12 * MIB
SEALED_FRAME_BYTES: Final = FRAME_BYTES + 16  # with the tag of a sealed channel
# One Codes message: at 10 Mbps 64 KiB are on the wire for 52 ms, the longest that control waits.
CODES_DATA_BYTES: Final = 64 * KIB
# All stages of a block go in one message up to this: it is on the wire for 3.3 ms at 10 Mbps. Above
# it the coarse stages go first, each on its own.
JOINED_CODES_BYTES: Final = 4 * KIB
# Credit window for codes and pooled vectors, per link and direction: what a peer may have to hold
# that its engine has not consumed. fp32 codes of 1,024 tokens at hidden 1,024 are 4 MiB a block.
WINDOW_BYTES: Final = 16 * MIB
# Frames queued for a link before the sender waits (control included).
SEND_QUEUE_BYTES: Final = 32 * MIB
# msgpack: no legal message nests deeper than plan -> shards -> shard -> rates (6) plus envelope.
NESTING_DEPTH: Final = 12
ARRAY_ITEMS: Final = 262_144  # prompt tokens are the longest array
MAP_ITEMS: Final = 256  # per-peer tables in a report
TEXT_BYTES: Final = MIB  # the prompt of a client, in UTF-8
NAME_CHARS: Final = 64  # a peer's or a model's name as shown to people
REASON_CHARS: Final = 500  # any sentence from a peer
TOKEN_TEXT_CHARS: Final = 4096  # text of one Token: one token and what was held back before it
# Frames without prompt or image. The largest is a plan of 64 peers: 4,032 rates of 170 bytes are
# 670 KiB.
CONTROL_FRAME_BYTES: Final = 4 * MIB
CONTROL_ARRAY_ITEMS: Final = 8_192  # 64 * 63 rates
# All items of all arrays and maps of one frame: tokens and token types, or the plan above with
# room. As empty maps (64 bytes each) they are 21 MB of memory.
FRAME_ITEMS: Final = 327_680
# Below this a message of CODES_DATA_BYTES could wait for ever: credit comes back in half windows.
WINDOW_MIN_BYTES: Final = 256 * KIB
WINDOW_MAX_BYTES: Final = 1024 * MIB
MODELS_PER_PEER: Final = 64
CODEBOOKS_PER_MODEL: Final = 16
LINKS_TOLD: Final = 64  # of its links that a peer tells others of: about 110 bytes each
HOST_CHARS: Final = 255  # a name of the DNS has 253 at most, an IPv6 address with a scope fewer
STRANGERS_TOLD: Final = 16  # names of unpaired peers, to a client
LINKS_TELL_S: Final = 5.0  # between two looks whether they changed by a quarter
NAMES_PER_MODEL: Final = 8  # of copies of one model on one peer, beside its first name
VECTOR_BYTES: Final = 64 * KIB  # a pooled vector: hidden size 16,384 in float32
LABELS: Final = 4_096

# --- requests -------------------------------------------------------------------------------------
PROMPT_TOKENS: Final = 131_072  # no plan is made for longer prompts; models usually take less
NEW_TOKENS: Final = 131_072
IMAGE_BYTES: Final = 10 * MIB  # compressed, as sent
IMAGE_PIXELS: Final = 64_000_000  # decompressed: 64 Mpixel RGB are 192 MB
PEERS_PER_PLAN: Final = 64
BLOCKS: Final = 512
STAGES: Final = 64
REQUESTS_PER_PEER: Final = 64  # running or waiting, before "busy"; and shards of others' requests
# Of one other device, over all its links: half of what a peer takes, so that others have a turn ...
REQUESTS_PER_DEVICE: Final = 32
DEVICE_BYTES: Final = 128 * MIB  # ... and frames of these and data that was not consumed, together
ANSWERS_AT_ONCE: Final = 16  # run at once, as many as are decoded in one product; the others wait
RETRY_LEAST_S: Final = 1.0  # what "busy" tells a caller to wait, at least ...
RETRY_MOST_S: Final = 60.0  # ... and at most
OPEN_REQUESTS_PER_LINK: Final = 256  # opened by one end and not ended; past it the link is refused
ENDED_REQUESTS: Final = 1_024  # remembered per link, so that late messages are dropped; 100 KB
BATCHED_STEPS: Final = (
    16  # texts decoded in one product; more would let each wait long for its token
)
NOTES: Final = 64  # sentences in a report
# A client that loses its peer goes on with another: so many times in one text ...
CLIENT_MOVES: Final = 3
CLIENT_PLACES: Final = 8  # ... trying so many addresses each time ...
CLIENT_MOVE_S: Final = 1.5  # ... for so long each: those that live answer within a round trip ...
CLIENT_MOVE_BUSY_S: Final = 4.0  # ... or, where none did, the first few once more for so long:
CLIENT_BUSY_PLACES: Final = 2  # a small board that starts a model needs seconds for a handshake
SEARCH_DIALS: Final = 64  # at once, of what is announced: some may accept and say nothing
# Of these, with others waiting, each keeps its place for so long and is dialled again later. All
# CANDIDATES have had a turn after 4 s of the 5 for which a search lasts.
SEARCH_TURN_S: Final = 1.0
REACH_S: Final = 12.0  # for `doctor` to dial all devices of the mesh
CLIENT_SEARCH_S: Final = 4.0  # before that it looks for others by itself: announcements take 1 s
PROGRESS_MARKS: Final = 1_024  # in one message: 15 KiB of positional integers
PROGRESS_S: Final = 0.1  # between two of them, while somebody looks on
SHOWN_REQUESTS: Final = 8  # kept for whoever looks on, the last ones; a plan of 4 peers is 3 KB
SPOT_CHECK_BYTES: Final = 64 * MIB  # codes kept of the one request that is checked
SHUN_S: Final = 600.0  # who sent false codes is in no plan for so long
MAKE_TABLES_S: Final = 0.2  # idle for so long, a peer makes the tables that requests went without
# Idle for so long, it gives memory back; getting 50 MiB anew costs the next request 15 ms.
GIVE_BACK_S: Final = 2.0
GIVE_BACK_BUSY_S: Final = 60.0  # never idle, it does so this often; what lost peers left stays else
EARLY_CODES_BYTES: Final = 4 * MIB  # codes that overtake their proposal (other link), per link
EARLY_CODES_S: Final = 10.0  # kept so long, then dropped

# --- measurements and models that are loaded ahead ------------------------------------------------
MEASURED_FILES: Final = 128  # that are kept, each of one model under one set of conditions
MEASURED_BYTES: Final = 256 * KIB  # of one of them: 16 codebooks with 64 rates are 120 KiB
MEASURE_TURN_S: Final = 10.0  # for another peer of this device to measure the same; then both do
RECHECK_S: Final = 600.0  # between two checks of one model's figures because requests contradict
CONTRADICTED: Final = 1.5  # times what was measured, or less by as much: it is measured again
PULSE_S: Final = 20.0  # between two looks how fast this device is now, while nothing runs
PULSE_AGAIN_S: Final = 2.0  # a change is told once a second look has seen it too
PULSE_SHARE: Final = 0.01  # of a core at most goes into these looks
# After its start a peer waits so long before it loads models ahead: who starts it to ask something
# has asked by then.
PRELOAD_AFTER_S: Final = 1.0
PRELOAD_LOOK_S: Final = 0.1  # between two looks whether requests still run
# Memory that loading a model takes for a moment, in its weights as float32: GPT-2 124M took 1.6 GiB
# beside the peer itself (docs/benchmarks.md), codes and tables included.
PRELOAD_FACTOR: Final = 3.5
PRELOAD_SHARE: Final = 0.5  # of the memory that is free at the start; the rest stays free
LOADING_TELL_S: Final = 1.0  # waiting for a model to load for so long, a stream says so

# --- browser tabs ---------------------------------------------------------------------------------
# Blocks in float32 in one tab: WebAssembly addresses 4 GiB, a phone gives a tab about half of it.
TAB_MODEL_BYTES: Final = 1536 * MIB
TAB_MODELS: Final = 8  # whose files are kept on the disk at once: 6 GiB in the worst case
TAB_MAKING: Final = 8  # requests that wait for a model's files; each keeps a thread
TAB_EMBED_AT_ONCE: Final = 4  # requests for embedded rows; 131,072 rows of 4,096 would be 2 GiB ...
TAB_EMBED_BYTES: Final = 64 * MIB  # ... so that one asks for no more than this

# --- times ----------------------------------------------------------------------------------------
HELLO_TIMEOUT_S: Final = 5.0  # connect + TCP + upgrade + hello on a bad Wi-Fi: about 2 s
HEARTBEAT_S: Final = 1.0  # a ping this long after the last frame received
SILENCE_S: Final = (
    4.0  # no frame for so long: listed nowhere (within 5 s), and planned with no more
)
# Requests that run wait longer for it: a Wi-Fi that was away for 5 s is back then. TCP sends again
# 0.2, 0.6, 1.4, 3.0 and 6.2 s after the first loss, a heartbeat after the last frame at most.
LOST_S: Final = 8.0
BACK_S: Final = 3.0  # a participant waits so long for links that a network took with it
BACK_LOOK_S: Final = 0.05  # between two looks whether they are there
# A tab that is silent is mostly one that its browser froze: its socket lives on, and it joins again
# by itself. Planning a request anew without it costs less than waiting.
TAB_LOST_S: Final = 5.0
# A client is a person's program, whose event loop may stand still for a while (an import, a plot).
# If it dies, its socket closes; if its machine vanishes, a request lives on for this x SILENCE_S.
CLIENT_PATIENCE: Final = 15
CLOSE_TIMEOUT_S: Final = 1.0
ACCEPT_TIMEOUT_S: Final = 10.0  # propose -> accept, the model already loaded
PREPARE_TIMEOUT_S: Final = 60.0  # loading and measuring a model on a slow board, for all peers
LOADING_S: Final = 3.0  # who did not ask for all peers waits so long for others that still load
# Waiting for one remote part: this many times what the whole plan was predicted to take, within
# these bounds. Past it its sender is left out, and the request planned again.
CODES_PATIENCE: Final = 20.0
CODES_LEAST_S: Final = 10.0
CODES_TIMEOUT_S: Final = 60.0
# The same with the policy "degrade": this many times what a block was predicted to take, and a
# little, because a busy device's steps vary; the first block also waits for the proposal to spread.
LATE_PATIENCE: Final = 4.0
LATE_LEAST_S: Final = 0.1
LATE_START_S: Final = 1.0
# Where rates may follow the links: no codes have to be there sooner (a busy device's event loop).
RATE_LEAST_S: Final = 0.03
RATE_CHANGES: Final = 32  # of one link in one request, then only downwards; all are reported
LATE_REPORT_S: Final = 0.3  # then the answer does not wait for the reports of those who are late
SHUTDOWN_S: Final = 3.0
SEEK_S: Final = 3.0  # and so long for one that has the model to get
SEEK_PEERS: Final = 64  # asked whom they know, to find one that has it
DISCOVERY_WAIT_S: Final = 1.5  # an embedded peer looks this long for others before it answers alone

# --- links and discovery --------------------------------------------------------------------------
LINKS_PER_DEVICE: Final = 128  # of these from one device, so that no member shuts out the others
LINKS: Final = 256  # WebSockets that a peer serves at once (peers, clients, those without hello)
PENDING_PONGS: Final = 256  # pongs that the other end has not read; past it the link is closed
# What one wake-up of the writer hands to the socket: a control message waits for no more than that.
WRITE_BATCH_BYTES: Final = 64 * KIB
RESEND_MS: Final = 1_000  # TCP sends again at least this often: a blip costs no more than it lasts
UNSENT_BYTES: Final = 64 * KIB  # in the kernel and not yet sent, for the same reason
PROBE_BYTES: Final = 96 * KIB  # first train of padded pings: 79 ms at 10 Mbps
PROBE_FAST_BYTES: Final = 512 * KIB  # second train past PROBE_FAST_BPS: 140 ms at 30 Mbps
PROBE_FAST_BPS: Final = 30e6  # bits per second
PLENTY_BPS: Final = 300e6  # bits per second; how much more a link carries changes no plan
PING_PADDING_BYTES: Final = 64 * KIB
PROBE_TIMEOUT_S: Final = 3.0
# Between two probes of a link that nothing else measures: what a busy moment told is soon gone,
# and where two agree the wait doubles up to PROBE_EVERY_S, 0.1 % of 10 Mbps.
PROBE_AGAIN_S: Final = 15.0
PROBE_EVERY_S: Final = 60.0
PROBE_SHARE: Final = 0.01  # of the time of a thin link, at most: 1 Mbps is probed every 80 s ...
PROBE_RARELY_S: Final = 90.0  # ... and thinner ones every so often
# A network that came back first carries what waited for it; a train of pings among that finds twice
# the throughput and more, as its pongs come in bunches.
PROBE_SETTLE_S: Final = 2.0
PROBE_IDLE_S: Final = 2.0  # between two looks whether this peer's requests are over
CANDIDATES: Final = 256  # addresses and announcements kept; more are ignored (mDNS can be flooded)
DIAL_ADDRESSES: Final = 8  # addresses of one candidate that are tried
DIAL_TIMEOUT_S: Final = 3.0  # TCP and upgrade to one address on a bad Wi-Fi
# From the end of the handshake: who does not know our certificate ends the connection a round trip
# later, who knows it waits UPGRADE_S for a request.
ENDS_AT_ONCE_S: Final = 1.0
DIAL_PATIENCE_S: Final = 1.0  # the peer with the higher id leaves dialling to the other one so long
BACKOFF_FIRST_S: Final = 0.5
BACKOFF_CAP_S: Final = 15.0
# A peer that was lost without a goodbye is dialled this often for a while, so that it is back 3 s
# after its network is: a SYN that was lost goes again after 1 s.
BACKOFF_KNOWN_S: Final = 0.75
DIAL_KNOWN_S: Final = 1.5
KNOWN_S: Final = 900.0
REDIAL_GAP_S: Final = 0.25  # between two dials of one candidate, however often it is announced
INTERFACE_POLL_S: Final = 3.0
ANNOUNCE_S: Final = 60.0  # between two announcements of a peer that nobody asked for
DISCOVERY_PAUSE_S: Final = 5.0  # before it starts again after an error of its own
NAMES_POLL_S: Final = 5.0  # between two questions for the addresses behind a name
RESOLVE_TIMEOUT_S: Final = 3.0  # an mDNS instance name to its address and TXT records

# --- trust ----------------------------------------------------------------------------------------
CERTIFICATE_BYTES: Final = 2_048  # a P-256 certificate of ours has 400
POINT_BYTES: Final = 65  # a public key of P-256, uncompressed
SIGNATURE_BYTES: Final = 80  # ECDSA over P-256 in DER: 72 at most
MESH_ID_BYTES: Final = 16
ROSTER_ENTRIES: Final = 256  # devices that are or were members of a mesh
ROSTER_FRAME_BYTES: Final = 640 * KIB  # ROSTER_ENTRIES with the largest certificates and names
ROSTER_JUMP: Final = 1_000  # of an entry's generation at once: no device misses so many decisions
ROSTER_GENERATIONS: Final = 2**31  # changes of one device's standing
TRUST_POLL_S: Final = 1.0  # a roster that another process changed (`unpair`) is seen within this
MEMBER_AGAIN_S: Final = 1.5  # after a member that did not know us: it may see the change by then
STRANGE_S: Final = 10.0  # a paired device that does not know this one for so long: the log says it
# A device that leaves tells the others for so long: a look for announcements takes 5 s of it, a
# running peer sees the change of the roster after TRUST_POLL_S.
FAREWELL_S: Final = 6.0
# What the clocks of two devices may differ by before `doctor` says so: the shortest membership that
# `--for` gives is a minute. Answers tell the time to the second.
CLOCK_OFF_S: Final = 30.0
TOLD_BYTES: Final = 32 * KIB  # the ids of ROSTER_ENTRIES devices are 17 KiB
KNOWN_CERTIFICATES: Final = 64  # answers to "whose is it?"; each start of a program brings one
# Before TLS is complete a connection costs a task and about 40 KB; floods get no further than this.
HANDSHAKES: Final = 64  # TLS handshakes at once
HANDSHAKES_PER_HOST: Final = 16  # of these from one address (a host's peers, clients and retries)
# Each takes 0.3 to 0.7 ms of OpenSSL, and 1 ms in all with a member's certificate, of the thread
# that requests are planned in: 8 are 1 % of a core. This machine's own are not counted.
HANDSHAKES_PER_S: Final = 8  # of a host that members come from; more wait for their turn
HANDSHAKES_BURST: Final = 16  # and at once
# Of hosts from which no member has come yet; more are closed. A new device begins one or two.
STRANGER_HANDSHAKES_PER_S: Final = 4  # of one of them
STRANGER_HANDSHAKES_BURST: Final = 16
STRANGERS_HANDSHAKES_PER_S: Final = 8  # of all of them: one machine may have many addresses
STRANGERS_HANDSHAKES_BURST: Final = 24
RATED_HOSTS: Final = 1_024  # whose handshakes are counted: 200 KB
# To take a connection and to close it costs 50 us, half of it in the kernel. So no flood costs more
# than 1,280 of them a second: 6 % of a core. With half as many the queue of a flood of 1,000 a
# second was full, and clients of this very machine did not get in for seconds.
ACCEPTS: Final = 32  # connections that are taken in one go
ACCEPT_REST_S: Final = 0.025  # until the next go, if one of them was one too many
HANDSHAKE_S: Final = 5.0  # TLS handshake: 0.1 s on a slow board, 2 s on a bad Wi-Fi
UPGRADE_S: Final = 5.0  # from the end of the handshake to the upgrade to a WebSocket
PAIR_CODE_S: Final = 120.0  # a pairing window
PAIR_TRIES: Final = 3  # wrong codes that close it; 1 in 27,000 million is right
PAIR_CONNECTIONS: Final = 8  # of unpaired devices at once
PAIR_EXCHANGE_S: Final = 10.0  # a whole pairing: four messages, 0.2 s of arithmetic on a slow board
PAIR_DIALS: Final = 16  # peers that a code is tried with at once: each takes a connection or two
PAIR_AGAIN_S: Final = (0.3, 0.7, 1.5)  # until a connection that was ended at once is tried again
# That a peer which starts waits for the port of a `pair` that shows a code: a look every 0.2 s, and
# the last second of a pairing. An exchange that is under way is not cut short for it.
PAIR_PORT_S: Final = 3.0
PAIR_FRAME_BYTES: Final = 1024 * KIB  # the largest message of it holds a roster
PLACES: Final = 64  # addresses of paired devices that were typed, in all; each is dialled for ever
PLACES_PER_DEVICE: Final = 4  # a device that moved keeps the last of them
PLACES_BYTES: Final = 64 * KIB  # PLACES with ids and the longest host names are 24 KiB
JOIN_KEYS: Final = 64  # open ones of one device
JOIN_KEY_S: Final = 86_400.0  # a join key is valid for so long unless told otherwise

# --- browser tabs ---------------------------------------------------------------------------------
TABS: Final = 8  # that one peer serves at once: a phone for each person in a room
TAB_S: Final = 43_200.0  # that a tab's certificate holds; it joins again by itself
TAB_JOIN_S: Final = 5.0  # from the upgrade to its first message
TAB_BEAT_S: Final = 5.0  # a ping after so much silence; half as long without a pong ends the tab
TAB_CONTROL_BYTES: Final = 4 * KIB  # one JSON message of a tab; the longest, an open, has 130
# At once: to each other peer of a plan, and as many of other tabs.
TAB_CHANNELS: Final = 2 * PEERS_PER_PLAN
TAB_DIALS: Final = 8  # channels being opened at once, of all tabs: each is a TLS handshake
# Read from a tab and not yet taken by the peers that it is for; past it no more is read. The window
# of one link that stands still (16 MiB) leaves the others room.
TAB_WAITING_BYTES: Final = 48 * MIB
TAB_PREPARE_S: Final = 3.0  # who asks for all peers waits so long for a tab to load a model
TAB_LOOK_S: Final = 1.0  # between two looks for peers that came, where no event tells of it

# --- files ----------------------------------------------------------------------------------------
SAFETENSORS_HEADER_BYTES: Final = 100 * MIB  # the format's own cap
WEIGHT_FILE_BYTES: Final = 2048 * MIB  # that is written, and so of memory while it is written
JSON_BYTES: Final = 64 * MIB  # tokenizer.json of a 256k vocabulary is about 33 MB
QUALITY_ROWS: Final = 4_096  # of quality.json: 16 codebooks, 32 rates, 8 numbers of peers
QUALITY_BYTES: Final = 8 * MIB  # about 600 bytes a row, of three tasks

# --- fine-tuning by several processes -------------------------------------------------------------
# The others wait for the first one's codebook: large ones are fitted in hours.
FIRST_PROCESS_S: Final = 86_400.0

# --- models that peers give each other ------------------------------------------------------------
SHARE_PIECE_BYTES: Final = 4 * MIB  # asked for at once; at 10 Mbps 3.4 s
SHARE_PIECE_S: Final = 120.0  # for one piece: a peer that answers requests gives a trickle
SHARE_WRITE_S: Final = 30.0  # a receiver that takes no chunk for so long is dropped
CODEBOOK_LOOK_S: Final = 5.0  # between two looks for codebooks that other peers have
CODEBOOK_AGAIN_S: Final = 300.0  # after they did not come
RESCAN_S: Final = 3.0  # between two looks for models that came to this device
SHARE_TRANSFERS: Final = 4  # files given at once
SHARE_TRICKLE_S: Final = 0.5  # between two chunks of 64 KiB while requests run: 1 Mbit/s

# --- the HTTP API ---------------------------------------------------------------------------------
# A text of TEXT_BYTES whose every character is escaped (\u0041) in JSON is 6 MiB.
API_BODY_BYTES: Final = 7 * MIB
API_IMAGE_BODY_BYTES: Final = 14 * MIB  # IMAGE_BYTES in base64 are 13.4 MiB
API_BODIES_BYTES: Final = 64 * MIB  # of all requests that are being read or answered at once
API_BODY_S: Final = 30.0  # a body that comes slower than 14 MiB in this is refused
# Connections, with or without a request: each takes one of the 1,024 descriptors that Linux gives a
# process, as does each of LINKS.
API_CONNECTIONS: Final = 256
# Of these of one address: a browser opens 6 to one site, OpenAI's client one for each request.
API_CONNECTIONS_PER_HOST: Final = 64
# This machine's own programs, pages and proxy; another host's share is left.
API_CONNECTIONS_LOOPBACK: Final = 192
API_HEADER_S: Final = 10.0  # from the connection to the end of its first request's header
API_REQUESTS: Final = 64  # being read or answered at once, as many as a peer takes; then "busy"
API_REQUEST_S: Final = 600.0  # one request in all: 4,096 new tokens at 7 a second
API_KEEPALIVE_S: Final = 10.0  # a stream without news says so: proxies give up after 30 to 60 s
API_WRITE_S: Final = 30.0  # a reader of a stream that takes nothing for so long is dropped
API_RETRY_S: Final = 1  # what "busy" tells a caller to wait
API_PROMPTS: Final = 32  # in one completion request
API_CHOICES: Final = 32  # prompts x n of one request: half of what a peer takes
API_TEXTS: Final = 256  # in one embedding request
API_SIDE_BY_SIDE: Final = 4  # of these at once, so that other requests come in between
API_STOPS: Final = 4  # stop strings
API_STOP_CHARS: Final = 256  # each; so much text is held back at most
API_MESSAGES: Final = 1_024  # of one chat
API_LIVE: Final = 16  # pages that look on at once, beside API_REQUESTS
REQUEST_NEWS_S: Final = 0.5  # between two events of one request: 64 at once are 128 a second
API_LIVE_S: Final = 0.1  # between two looks for news; marks come as often
API_LIVE_MESH_S: Final = 1.0  # the figures of links, which change all the time
API_LIVE_WORD_S: Final = 2.0  # a word to a page: it takes a peer without one for 5 s as gone
API_LIVE_BEAT_S: Final = 5.0  # a ping to a page; its phone went to sleep if no pong comes in half
API_TOKEN_CHARS: Final = 16  # a shorter token could be guessed
CHAT_TEMPLATE_BYTES: Final = 256 * KIB  # the longest in use are about 20 KB
CHAT_TEMPLATE_S: Final = 5.0  # for one chat; usual ones take milliseconds
