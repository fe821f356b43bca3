"""The ways to run one inference over several devices that astra_mesh is compared with.

They use the package's transformer blocks, attention kernels, codecs and compute thread, and a
plain wire of their own: TCP without delay, a 16-byte header before each message
(:mod:`tools.bench.baselines.group`). No credits, no WebSocket frames, no checks: less work per
byte than the mesh's own links do.
"""
