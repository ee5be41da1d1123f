"""Benchmarks of chunkstore: named workloads, each a ratio within one run, JSON out.

See README.md in this directory for how to run them and what the figures mean.
"""
