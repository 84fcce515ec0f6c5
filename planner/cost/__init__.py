"""Closed forms: bytes, seconds and counts of a candidate, from shapes and declared methods."""
