"""Paired comparisons of routers on unseen seeds, and the report that people share."""
