"""Running a plan: partial attention, the block pipeline, decoding, the single-process reference.

Talks to the network only through :class:`astra_mesh.engine.exchange.Exchange`.
"""
