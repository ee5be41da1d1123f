"""Descriptions of containers by which other libraries read them."""
