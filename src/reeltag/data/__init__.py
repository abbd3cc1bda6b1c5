"""Data sets: record schema, shards and their manifest, hold-out, sampling order, batch loader and video extraction."""
