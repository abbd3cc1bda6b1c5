"""Engines that compute the members of a model, and the choice among them; see `ways.open_member`."""
