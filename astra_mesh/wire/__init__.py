"""Messages, their bytes, and bit packing. No I/O; imports nothing from the rooms above."""
