"""Parsers against damaged and invented input: `make fuzz`."""
