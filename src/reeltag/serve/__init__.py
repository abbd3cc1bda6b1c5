"""The HTTP service: `reeltag serve`."""
