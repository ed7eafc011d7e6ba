"""How fast this machine simulates, trains and decides; each module has a `measure`."""

from collections.abc import Callable

Progress = Callable[[str, float, float], None]
"""Called with (what is being measured, done, total)."""

SCENARIO = "chat-equal"
"""The cluster of the demo that everything is measured on: 4 equal replicas."""
LOAD = 0.7
