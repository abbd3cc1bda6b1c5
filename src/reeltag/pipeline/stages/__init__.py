"""The stages of a recipe; `plan.py` reads like a script."""
