"""Estimates of a recipe's duration and price on given machines."""
