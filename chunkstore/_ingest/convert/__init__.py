"""A plan -> a container."""
