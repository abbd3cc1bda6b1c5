"""Feature extractors, which turn pictures or seconds of sound into vectors."""
