"""Microseconds from a view to a choice, for one request at a time, by a policy in its exported form."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from fairlead import rng
from fairlead.bench import Progress
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.packaged import GENERALIST, policy_path
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View

REPLICAS = (4, 16, 64)
DISTINCT_VIEWS = 64
LEAST_DECISIONS = 200
"""A 99th percentile of fewer would be noise."""


def measure(seconds: float, progress: Progress, policy: str | Path = GENERALIST) -> dict[str, Any]:
    """Time `OnnxRouter.route` on one view at a time: features, inference on one thread, argmax.

    Returns:
        `p50_us` and `p99_us`, each by number of replicas (as text, for JSON).
    """
    p50, p99 = {}, {}
    router = OnnxRouter(policy_path(policy))
    for done, replicas in enumerate(REPLICAS):
        progress("decision", done, len(REPLICAS))
        times = _times_us(router, replicas, seconds / len(REPLICAS))
        p50[str(replicas)], p99[str(replicas)] = (float(x) for x in np.percentile(times, (50, 99)))
    progress("decision", len(REPLICAS), len(REPLICAS))
    return {"p50_us": p50, "p99_us": p99}


def _times_us(router: OnnxRouter, replicas: int, seconds: float) -> list[float]:
    generator = rng.stream(0, "bench", "views", replicas)
    views = [
        View(
            generator.uniform(0.5, 50.0, (1, replicas, NUM_REPLICA_COLUMNS)),
            generator.uniform(0.5, 500.0, (1, NUM_REQUEST_COLUMNS)),
        )
        for _ in range(DISTINCT_VIEWS)
    ]
    for view in views:  # compiles, and fills the caches
        router.route(view)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < LEAST_DECISIONS or time.perf_counter() < end:
        view = views[len(times) % DISTINCT_VIEWS]
        began = time.perf_counter_ns()
        router.route(view)
        times.append((time.perf_counter_ns() - began) / 1000)
    return times
