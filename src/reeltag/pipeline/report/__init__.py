"""Results of a run, for people."""
