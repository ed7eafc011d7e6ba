"""Routers that only count run on replicas that lag behind; the results are those of the full view."""

import numpy as np
import pytest
from tests.simulator.tables import operator_tables, step_table

from fairlead.env.run import run
from fairlead.policy.heuristics import COUNTING, HEURISTICS, Heuristic
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import custom_fleet
from fairlead.simulator.hardware import device, model
from fairlead.simulator.schedulers import SchedulerOptions
from fairlead.simulator.timing import analytic
from fairlead.workload.requests import Requests

A100 = analytic(model("llama-3-8b"), device("a100-80g"))


@pytest.mark.parametrize("scheduler", ["vllm", "sarathi", "vllm_v0", "vidur_v1"])
@pytest.mark.parametrize("blocks", [2000, 100])
def test_lagging_replicas_change_nothing(scheduler: str, blocks: int) -> None:
    made = custom_fleet(
        [A100, operator_tables(tokens=900), step_table(tokens=900), A100.scaled(2.5)],
        np.full(4, blocks),
        token_budget=900 if scheduler == "vllm_v0" else 128,
        max_num_seqs=24,
        block_size=16,
        scheduler=SchedulerOptions(scheduler),
    )
    draw = np.random.default_rng(blocks)
    wanted = Requests(
        np.cumsum(draw.exponential(0.1, 300)),
        draw.integers(1, 450, 300),
        draw.integers(1, 450, 300),
        session=draw.integers(0, 40, 300),
    )
    lazy, eager = Clusters([made] * 2, [wanted] * 2), Clusters([made] * 2, [wanted] * 2)
    for name in (name for name, code in HEURISTICS.items() if code in COUNTING):
        lazy.load([wanted] * 2, 0)
        eager.load([wanted] * 2, 0)
        run(lazy, Heuristic(name), seed=3)
        router = Heuristic(name)
        router.reset(2, 4, 3)
        for _ in range(eager.N):
            eager.route(router.route(eager.observe()))
        eager.drain()
        for c in range(2):
            fast, full = lazy.outcomes(c), eager.outcomes(c)
            np.testing.assert_array_equal(fast.replica, full.replica)
            np.testing.assert_array_equal(fast.preemptions, full.preemptions)
            assert fast.scheduled_s is not None and full.scheduled_s is not None
            np.testing.assert_allclose(fast.scheduled_s, full.scheduled_s, rtol=1e-9)
            np.testing.assert_allclose(fast.first_token_s, full.first_token_s, rtol=1e-9)
            np.testing.assert_allclose(fast.finish_s, full.finish_s, rtol=1e-9)
            assert (full.preemptions.sum() > 0) == (blocks == 100)
