"""The replicas of one cluster as arrays: coefficients, limits and declared facts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fairlead.errors import FairleadError
from fairlead.simulator.hardware import device, model
from fairlead.simulator.reference_timing import Scheduled, batch_seconds
from fairlead.simulator.schedulers import VLLM_V1, SchedulerOptions
from fairlead.simulator.tables import OperatorTables, StepTable, TimingModel, reach
from fairlead.simulator.timing import NUM_TIMING_FIELDS, Coefficients, analytic, kv_blocks
from fairlead.simulator.timing_files import read_timing
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
    """(R, 7) coefficients of the iteration time, as in `timing.Coefficients`; zeros where a table is used."""
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
    scheduler: SchedulerOptions = VLLM_V1
    """How every replica forms its batches."""
    tables: tuple[StepTable | OperatorTables | None, ...] = ()
    """(R,) the table that a replica runs by, if it does; replicas that are alike share one object."""
    declared: tuple[int, ...] = ()
    """(R,) the replica that each is said to be as fast as: itself, unless speeds are not declared."""
    prefix_caching: bool = False
    """Whether replicas keep full blocks cached."""
    prefix_memory_blocks: int | None = None
    """Blocks of prompts and answers that a router remembers per replica; None: its part of what that has."""

    def __post_init__(self) -> None:
        """No tables stands for none on any replica; all speeds are declared unless it is said otherwise.

        Raises:
            FairleadError: for prefix caching with a scheduler that cannot do it.
        """
        size = len(self.kv_blocks)
        object.__setattr__(self, "tables", self.tables or (None,) * size)
        object.__setattr__(self, "declared", self.declared or tuple(range(size)))
        if self.prefix_caching and self.scheduler.name not in ("vllm", "vidur_v1"):
            raise FairleadError(f"the scheduler {self.scheduler.name} has no prefix caching: only vllm has")

    def model(self, replica: int) -> TimingModel:
        """How long the iterations of one replica take."""
        return self.tables[replica] or Coefficients(*(float(c) for c in self.timing[replica]))

    @property
    def memory_blocks(self) -> npt.NDArray[np.int64]:
        """(R,) blocks that a router remembers of what it sent to each replica: none without caching.

        Of M routers that share a cache each has an M-th to itself: what the others send displaces the rest.
        """
        if not self.prefix_caching:
            return np.zeros_like(self.kv_blocks)
        if self.prefix_memory_blocks is None:
            return np.maximum(1, self.kv_blocks // self.routers)
        return np.full_like(self.kv_blocks, self.prefix_memory_blocks)

    @property
    def num_replicas(self) -> int:
        """R."""
        return len(self.kv_blocks)

    def one(self, replica: int) -> "Fleet":
        """The fleet that consists of one of the replicas, behind one router."""
        rows = slice(replica, replica + 1)
        return replace(
            self,
            timing=self.timing[rows],
            kv_blocks=self.kv_blocks[rows],
            static=self.static[rows],
            tables=self.tables[rows],
            declared=(),
            routers=1,
        )


def nominal_iteration_s(model: TimingModel) -> float:
    """Time of a typical mixed iteration, s: the measure of a replica's speed.

    32 decodes with a context of 1,000 tokens each, and a prompt of 512 tokens; where a table ends before
    that, as much of it as there is.
    """
    end = reach(model)
    decodes = min(_NOMINAL_DECODES, end.sequences - 1, end.tokens - 1)
    decode = Scheduled(1, min(_NOMINAL_CONTEXT, end.context) - 1, decoding=True)
    prompt = Scheduled(min(_NOMINAL_PREFILL, end.tokens - decodes), 0, decoding=False)
    return batch_seconds(model, [*[decode] * decodes, prompt])


def prefill_tokens_per_s(model: TimingModel, budget: int) -> float:
    """Rate at which prompts alone are computed, a full budget (or table) at a time."""
    tokens = min(budget, reach(model).tokens)
    return tokens / batch_seconds(model, [Scheduled(tokens, 0, decoding=False)])


def decode_iteration_s(model: TimingModel) -> float:
    """Time of a decode iteration of one request with no context, s."""
    return batch_seconds(model, [Scheduled(1, -1, decoding=True)])


def build_fleet(scenario: Scenario) -> Fleet:
    """The fleet that a scenario describes.

    Raises:
        FairleadError: for an unknown device or model, or a model that does not fit.
    """
    facts = model(scenario.model)
    engine = scenario.engine
    models: list[TimingModel] = []
    blocks: list[int] = []
    for group in scenario.replicas:
        hardware = device(group.device)
        blocks += [kv_blocks(facts, hardware, group.tensor_parallel, engine)] * group.count
        if group.timing is None:
            made: TimingModel = analytic(facts, hardware, group.tensor_parallel, group.slowdown)
        else:
            made = read_timing(group.timing, facts, group.tensor_parallel, engine).scaled(group.slowdown)
        models += [made] * group.count
    return custom_fleet(
        models,
        np.array(blocks, np.int64),
        token_budget=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        block_size=engine.block_size,
        scrape_interval_s=scenario.view.scrape_interval_s,
        speeds_declared=scenario.view.speeds_declared,
        max_tokens=scenario.workload.max_tokens or 0,
        routers=scenario.routers,
        scheduler=SchedulerOptions(engine.scheduler, engine.watermark),
        prefix_caching=engine.enable_prefix_caching,
        prefix_memory_blocks=scenario.view.prefix_memory_blocks,
    )


def custom_fleet(
    timing: npt.NDArray[np.float64] | Sequence[TimingModel],
    blocks: npt.NDArray[np.int64],
    *,
    token_budget: int,
    max_num_seqs: int,
    block_size: int,
    scrape_interval_s: float = 1.0,
    speeds_declared: bool = True,
    max_tokens: int = 0,
    routers: int = 1,
    scheduler: SchedulerOptions = VLLM_V1,
    prefix_caching: bool = False,
    prefix_memory_blocks: int | None = None,
) -> Fleet:
    """A fleet from iteration-time models and KV blocks (R,); declared facts are derived from them.

    `timing` holds a model for each replica, or their coefficients (R, 7). The reference replica is the
    fastest one. Undeclared speeds: all replicas are said to be like it.
    """
    models = [_as_model(row) for row in timing]
    nominal = np.array([nominal_iteration_s(row) for row in models])
    reference = int(np.argmin(nominal))
    declared = range(len(models)) if speeds_declared else [reference] * len(models)
    static = np.empty((len(models), STATIC_COLUMNS))
    for r, row in enumerate(models[like] for like in declared):
        static[r] = (
            nominal[reference] / nominal_iteration_s(row),
            prefill_tokens_per_s(row, token_budget),
            decode_iteration_s(row),
            blocks[r] * block_size,
            max_num_seqs,
        )
    return Fleet(
        np.array([row if isinstance(row, Coefficients) else [0.0] * NUM_TIMING_FIELDS for row in models]),
        np.ascontiguousarray(blocks, np.int64),
        static,
        token_budget,
        max_num_seqs,
        block_size,
        scrape_interval_s,
        max_tokens,
        routers,
        scheduler,
        tuple(None if isinstance(row, Coefficients) else row for row in models),
        tuple(declared),
        prefix_caching,
        prefix_memory_blocks,
    )


def _as_model(row: TimingModel | npt.NDArray[np.float64]) -> TimingModel:
    if isinstance(row, np.ndarray):
        if row.shape != (NUM_TIMING_FIELDS,):
            raise FairleadError(
                f"a row of coefficients has shape {row.shape}: give {NUM_TIMING_FIELDS} numbers"
            )
        return Coefficients(*(float(c) for c in row))
    return row
