"""From shards to batches: schema, TFRecord, Example, manifest, hold-out, order and loader."""
