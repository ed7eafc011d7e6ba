"""Routers: heuristics, the learned network and its exported artefact."""
