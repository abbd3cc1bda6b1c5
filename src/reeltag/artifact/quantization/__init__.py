"""Weights in fewer bits: encodings, how they are computed, and layers that multiply by them."""
