"""Sources -> a plan of every sample, before a byte is written."""
