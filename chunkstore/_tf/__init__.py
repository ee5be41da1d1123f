"""What `chunkstore.tf` is made of; the only place that imports TensorFlow."""
