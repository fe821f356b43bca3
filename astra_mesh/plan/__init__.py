"""Planning: profiles and a cost model turned into a plan. Pure functions; no sockets, clock or torch."""
