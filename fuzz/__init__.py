"""Fuzz targets: each takes bytes, opens what they make, and lets no error pass but those that people can mend."""
