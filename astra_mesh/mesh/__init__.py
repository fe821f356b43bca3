"""Peers and the links between them: identity, discovery, sessions, links, membership."""
