"""Import of TensorFlow checkpoints."""
