"""Codebooks and codecs: tensors only, no I/O but the codebook's own file."""
