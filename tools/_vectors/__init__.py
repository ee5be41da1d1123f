"""The test vectors of the specification: a byte builder written from the text alone, and what it builds."""
