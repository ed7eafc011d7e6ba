"""A cluster of replicas, simulated one engine iteration at a time."""
