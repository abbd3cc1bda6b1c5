"""From a model file and videos to probabilities, tags and metrics."""
