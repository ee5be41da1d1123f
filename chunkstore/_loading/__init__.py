"""Loading: which samples come next, gathering them, and prefetching."""
