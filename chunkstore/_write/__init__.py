"""Samples in: staged, summed, written shard by shard, and committed."""
