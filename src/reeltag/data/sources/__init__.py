"""Features in files that are not shards, read with the libraries of their formats."""
