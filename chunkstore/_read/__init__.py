"""Positions or keys in, arrays out."""
