"""Measurements whose results are committed: each a named command."""
