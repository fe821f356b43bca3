"""The laboratory: a LAN on one Linux machine, for tests and benchmarks (docs/lab.md)."""
