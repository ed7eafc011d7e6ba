"""What a forecast may know beyond the router's own ledger. None of it is known to a real router.

Numbers that can be added up; 0 is a router's own knowledge.
"""

TRUE_SPEEDS = 1
"""How long iterations really take on each replica, and how much slower it is just now."""
ALL_REQUESTS = 2
"""What the other routers have sent to the replicas."""
ENGINE_STATE = 4
"""How far each engine is: its batch, its queue, its KV blocks. Includes all requests."""
TRUE_LENGTHS = 8
"""How long each prompt is and each output will be."""

NOTHING = 0
EVERYTHING = TRUE_SPEEDS | ALL_REQUESTS | ENGINE_STATE | TRUE_LENGTHS
