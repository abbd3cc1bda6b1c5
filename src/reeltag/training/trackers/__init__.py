"""Trackers of experiments: Weights & Biases, MLflow, TensorBoard and CSV files."""
