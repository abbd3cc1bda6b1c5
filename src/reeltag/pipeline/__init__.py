"""A recipe as a graph of stages: plan, execution, run folder, report."""
