"""Iteration-time models from measurements, and written out for other simulators."""
