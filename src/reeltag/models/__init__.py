"""Taggers: input, pooling, hidden layer, gating and head; one file a family."""
