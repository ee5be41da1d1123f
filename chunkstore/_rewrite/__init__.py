"""Containers out of containers: merged, repacked, recovered."""
