"""Predictions as CSV, JSON Lines, Parquet and submission files."""
