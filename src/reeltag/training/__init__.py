"""One model to its weights: loop, schedule, losses, averaging, checkpoints and logs."""
