"""What `chunkstore.torch` is made of; import it from there."""
