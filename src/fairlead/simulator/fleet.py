"""The replicas of one cluster as arrays: coefficients, limits and declared facts."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fairlead.simulator.hardware import device, model
from fairlead.simulator.timing import NUM_TIMING_FIELDS, analytic, iteration_time, kv_blocks
from fairlead.workload.scenario import Scenario

STATIC_COLUMNS = 5
"""speed, prefill_tokens_per_s, decode_iteration_s, kv_capacity_tokens, max_num_seqs."""

_NOMINAL_PREFILL = 512
_NOMINAL_DECODES = 32
_NOMINAL_CONTEXT = 1000


@dataclass(frozen=True, eq=False)
class Fleet:
    """R replicas: how fast each is, what it can hold, and what is declared about it to the router."""

    timing: npt.NDArray[np.float64]
    """(R, 7) coefficients of the iteration time, as in `timing.Coefficients`."""
    kv_blocks: npt.NDArray[np.int64]
    """(R,) size of the KV cache in blocks."""
    static: npt.NDArray[np.float64]
    """(R, 5) static columns of the view."""
    token_budget: int
    max_num_seqs: int
    block_size: int
    scrape_interval_s: float = 1.0
    max_tokens: int = 0
    routers: int = 1
    """M routers that share the replicas."""

    @property
    def num_replicas(self) -> int:
        """R."""
        return len(self.kv_blocks)

    def one(self, replica: int) -> "Fleet":
        """The fleet that consists of one of the replicas, behind one router."""
        rows = slice(replica, replica + 1)
        return Fleet(
            self.timing[rows],
            self.kv_blocks[rows],
            self.static[rows],
            self.token_budget,
            self.max_num_seqs,
            self.block_size,
            self.scrape_interval_s,
            self.max_tokens,
        )


def nominal_iteration_s(timing: npt.NDArray[np.float64]) -> float:
    """Time of a typical mixed iteration, s: the measure of a replica's speed.

    32 decodes with a context of 1,000 tokens each, and a prompt of 512 tokens.
    """
    tokens = _NOMINAL_PREFILL + _NOMINAL_DECODES
    pairs = _NOMINAL_PREFILL * (_NOMINAL_PREFILL + 1) / 2
    kv_tokens = _NOMINAL_DECODES * _NOMINAL_CONTEXT
    return float(iteration_time(timing, tokens, _NOMINAL_DECODES + 1, kv_tokens, pairs))


def build_fleet(scenario: Scenario) -> Fleet:
    """The fleet that a scenario describes.

    Raises:
        FairleadError: for an unknown device or model, or a model that does not fit.
    """
    facts = model(scenario.model)
    engine = scenario.engine
    groups = [
        (
            analytic(facts, device(group.device), group.tensor_parallel, group.slowdown),
            kv_blocks(facts, device(group.device), group.tensor_parallel, engine),
            group.count,
        )
        for group in scenario.replicas
    ]
    timing = np.array([list(coefficients) for coefficients, _, n in groups for _ in range(n)])
    blocks = np.array([blocks for _, blocks, n in groups for _ in range(n)], dtype=np.int64)
    assert timing.shape == (scenario.num_replicas, NUM_TIMING_FIELDS)
    return custom_fleet(
        timing,
        blocks,
        token_budget=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        block_size=engine.block_size,
        scrape_interval_s=scenario.view.scrape_interval_s,
        speeds_declared=scenario.view.speeds_declared,
        max_tokens=scenario.workload.max_tokens or 0,
        routers=scenario.routers,
    )


def custom_fleet(
    timing: npt.NDArray[np.float64],
    blocks: npt.NDArray[np.int64],
    *,
    token_budget: int,
    max_num_seqs: int,
    block_size: int,
    scrape_interval_s: float = 1.0,
    speeds_declared: bool = True,
    max_tokens: int = 0,
    routers: int = 1,
) -> Fleet:
    """A fleet from coefficients (R, 7) and KV blocks (R,); declared facts are derived from them.

    The reference replica is the fastest one. Undeclared speeds: all replicas are said to be like it.
    """
    nominal = np.array([nominal_iteration_s(row) for row in timing])
    reference = int(np.argmin(nominal))
    declared = timing if speeds_declared else np.repeat(timing[reference : reference + 1], len(timing), 0)
    static = np.empty((len(timing), STATIC_COLUMNS))
    for r, row in enumerate(declared):
        full = iteration_time(row, token_budget, 1, 0, token_budget * (token_budget + 1) / 2)
        static[r] = (
            nominal[reference] / nominal_iteration_s(row),
            token_budget / full,
            iteration_time(row, 1, 1, 0, 0),
            blocks[r] * block_size,
            max_num_seqs,
        )
    return Fleet(
        np.ascontiguousarray(timing, np.float64),
        np.ascontiguousarray(blocks, np.int64),
        static,
        token_budget,
        max_num_seqs,
        block_size,
        scrape_interval_s,
        max_tokens,
        routers,
    )
