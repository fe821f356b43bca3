"""Planning: profiles and a cost model to a plan. Pure functions; no sockets, clock or torch."""
