"""Pools of worker processes, and the processes (ranks) that share one training."""
