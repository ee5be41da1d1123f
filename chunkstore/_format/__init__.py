"""Bytes to values and back: no I/O, no threads (spec/chunkstore-1.md)."""
