"""Several processes: pools of them, and one training that they share."""
