"""The bulkhead: rules on single views, and what it is worth where KV caches do not suffice."""

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fairlead.evaluate.tournament import simulate
from fairlead.policy import bulkhead
from fairlead.policy.catalogue import find_router
from fairlead.policy.heuristics import Heuristic
from fairlead.train.teachers import make_teacher
from fairlead.view import schema
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View
from fairlead.workload.scenario import load_scenario


def view(columns: Mapping[str, Sequence[float]], prompt: float = 300.0) -> View:
    """Three available replicas with KV caches of 1,000 tokens, and a prompt."""
    found = View(np.zeros((1, 3, NUM_REPLICA_COLUMNS)), np.zeros((1, NUM_REQUEST_COLUMNS)))
    found.replicas[..., schema.KV_CAPACITY_TOKENS] = 1000.0
    found.replicas[..., schema.AVAILABLE] = 1.0
    found.request[..., schema.PROMPT_TOKENS] = prompt
    for name, values in columns.items():
        found.replicas[0, :, getattr(schema, name.upper())] = values
    return found


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        # It fits somewhere: as least_kv.
        ({"context_tokens": [900, 700, 800]}, 1),
        ({"context_tokens": [900, 500, 600], "pending_prefill_tokens": [0, 200, 0]}, 2),
        # It fits nowhere: the fullest, what waits there included.
        ({"context_tokens": [900, 701, 800]}, 0),
        ({"context_tokens": [900, 701, 800], "pending_prefill_tokens": [0, 0, 900]}, 2),
        # Shares count, not tokens.
        ({"context_tokens": [900, 701, 1800], "kv_capacity_tokens": [1000, 1000, 2050]}, 0),
        # What is cached needs no room.
        ({"context_tokens": [900, 750, 800], "expected_prefix_hit_tokens": [0, 50, 0]}, 1),
        # Room on a replica that is away is no room, and the fullest one may be away.
        ({"context_tokens": [900, 100, 800], "available": [1, 0, 1]}, 0),
        ({"context_tokens": [900, 800, 850], "available": [0, 1, 1]}, 2),
    ],
)
def test_rule(columns: Mapping[str, Sequence[float]], expected: int) -> None:
    assert Heuristic("kv_bulkhead").route(view(columns)).tolist() == [expected]


def test_only_where_a_prompt_fits_nowhere_costs_are_others() -> None:
    here = view({"context_tokens": [900, 701, 800]})
    views = View(np.repeat(here.replicas, 2, 0), np.repeat(here.request, 2, 0))
    views.request[1, schema.PROMPT_TOKENS] = 100.0
    costs = np.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    found = bulkhead.contained(costs, views.replicas, views.request)
    assert found.tolist() == [[1.0, 3.0, 3.0], [3.0, 1.0, 2.0]]
    assert costs[0].tolist() == [3.0, 1.0, 2.0]
    env: Any = SimpleNamespace(teacher_costs=lambda: costs, clusters=SimpleNamespace(view=views))
    teacher = make_teacher("lookahead:contained")
    assert teacher.name == "contained lookahead"
    np.testing.assert_array_equal(teacher.label(env), found)


def mean_e2e(router: str) -> Any:
    """(seeds,) s, at 120 % of the capacity measured while the cluster thrashes."""
    runs = simulate(load_scenario("kv-pressure"), 1.2, find_router(router), range(40), 2000)
    return np.array([(each.finish_s - each.arrival_s).mean() for each in runs])


def test_a_cluster_that_is_out_of_memory_does_not_fall_as_a_whole() -> None:
    """`least_kv` loses it in every third run."""
    least, contained = mean_e2e("least_kv"), mean_e2e("kv_bulkhead")
    assert contained.mean() < 0.7 * least.mean()
    assert contained.max() < 0.5 * least.max()
