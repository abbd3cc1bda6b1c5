"""Weights in fewer bits: encodings, quantization, and weights that are multiplied in their encoded form."""
