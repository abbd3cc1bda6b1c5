"""From video files to frame features: decoding, extractors, and data sets of shards."""
