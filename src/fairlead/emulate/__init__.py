"""The simulator behind real vLLM-compatible HTTP endpoints, in real time."""
