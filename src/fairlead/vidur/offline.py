"""PyPI's Vidur 0.0.26 without a network: configuration, ready-made prediction tables, one run.

What it takes to run it offline, all of it here:

1. *Prediction tables.* Vidur first looks for tables on Hugging Face, then for profiling data there, to train
   on. `_table_predictor` overrides the first of these two methods and returns tables that were
   computed from an iteration-time model (`calibrate.operators`); nothing is trained.
2. *Requests.* Vidur reads them from a file with its own rounding; here they are handed over as they are.
3. *Repeated runs.* Numbers of replicas and requests are counted per process, and its own routers assume
   that replicas start at 0: the counters are set back.
4. *Output.* It insists on a folder for its configuration and logs to stdout: a temporary folder, and silence.
"""

import logging
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from fairlead.calibrate.operators import CHUNK_STEP, VidurTables
from fairlead.errors import FairleadError
from fairlead.simulator.outcomes import Outcomes
from fairlead.simulator.vidur_profile import TOKEN_OPERATORS, TOKEN_STEP
from fairlead.workload.requests import Requests

VERSION = "0.0.26"
"""The version that this is written for; others have other internals."""
STAND_IN = "meta-llama/Llama-3-8B"
"""The model that Vidur is told: times and KV blocks come from the tables, so any will do."""
STAND_IN_LAYERS = 32


@dataclass(frozen=True, eq=False)
class VidurReplica:
    """One replica: how long its iterations take and how many KV blocks it has."""

    tables: VidurTables
    kv_blocks: int


@dataclass(frozen=True, eq=False)
class VidurCluster:
    """The cluster that Vidur is to simulate."""

    replicas: Sequence[VidurReplica]
    """Those that share a `VidurTables` object share a predictor."""
    scheduler: Literal["sarathi", "vllm"]
    token_budget: int
    """Chunk of `sarathi`; tokens in a prefill batch of `vllm`."""
    max_num_seqs: int
    block_size: int = 16
    watermark: float = 0.01
    """Share of the blocks that admission leaves free."""
    metrics: bool = False
    """Whether Vidur keeps its own request and batch metrics (slower; nothing here reads them)."""
    native: bool = False
    """Whether lookups go through Vidur's C++ predictor."""


Choose = Callable[[float, Any], int]
"""Called at each arrival with the time and Vidur's request; returns a replica's index."""


class Hooks:
    """What a run tells its observer; the default observes nothing."""

    def started(self, schedulers: Sequence[Any], requests: Sequence[Any]) -> None:
        """The cluster has been built: Vidur's replica schedulers and requests."""

    def time(self, now_s: float) -> None:
        """The next event is at `now_s`; everything before it has happened."""

    def batch_ended(self, replica: int, batch: Any) -> None:
        """An iteration has ended."""


def check_installed() -> None:
    """Refuse to go on without the right Vidur.

    Raises:
        FairleadError: it is not installed, or in another version.
    """
    try:
        found = version("vidur")
    except PackageNotFoundError:
        raise FairleadError(
            "the simulator Vidur is not installed: pip install 'fairlead[vidur]' (Linux on x86-64)"
        ) from None
    if found != VERSION or find_spec("vidur") is None:
        raise FairleadError(
            f"vidur {found} is installed, but this works with {VERSION}: pip install 'fairlead[vidur]'"
        )


class VidurRun:
    """One run of Vidur: built by the constructor, simulated by `run`."""

    def __init__(
        self,
        cluster: VidurCluster,
        requests: Requests,
        router: Choose | Literal["round_robin", "lor", "random"],
        hooks: Hooks | None = None,
    ) -> None:
        """Build Vidur's cluster, predictors and event queue.

        Args:
            cluster: the hardware and the engine's options.
            requests: N requests, as they are.
            router: asked at each arrival, or the name of one of Vidur's own (which need equal replicas).
            hooks: told what happens.

        Raises:
            FairleadError: Vidur is missing, or could never serve one of the requests.
        """
        check_installed()
        _check_fit(cluster, requests)
        from vidur.entities import Batch, Replica, Request

        logging.getLogger("vidur").setLevel(logging.CRITICAL)
        for counted in (Batch, Replica, Request):
            counted._id = -1
        self.num_replicas = len(cluster.replicas)
        self.assigned = np.full(len(requests), -1, np.int64)
        self.sent = requests
        rows = zip(
            requests.arrival_s.tolist(),
            requests.prompt_tokens.tolist(),
            requests.output_tokens.tolist(),
            strict=True,
        )
        self.requests = [Request(*row) for row in rows]
        for number, request in enumerate(self.requests):
            request.number = number
        self.simulator = _build(cluster, self, router, hooks or Hooks())

    def run(self) -> None:
        """Simulate to the last completion.

        Raises:
            FairleadError: Vidur stops by one of its own assertions.
        """
        try:
            self.simulator.run()
        except AssertionError as error:
            reason = " ".join(str(error).split())[:120] or "no message"
            restarted = sum(request.num_restarts > 0 for request in self.requests)
            hint = (
                f"; {restarted} requests had been preempted, after which its bookkeeping fails: lower the "
                "load or raise num_gpu_blocks"
                if restarted
                else ""
            )
            raise FairleadError(f"Vidur {VERSION} failed an assertion of its own ({reason}){hint}") from error

    def outcomes(self) -> Outcomes:
        """What happened to the requests."""
        return Outcomes(
            arrival_s=self.sent.arrival_s,
            prompt_tokens=self.sent.prompt_tokens,
            output_tokens=self.sent.output_tokens,
            replica=self.assigned,
            first_token_s=np.array([request._prefill_completed_at for request in self.requests]),
            finish_s=np.array([request._completed_at for request in self.requests]),
            preemptions=np.array([request.num_restarts for request in self.requests], np.int64),
            num_replicas=self.num_replicas,
        )


def _check_fit(cluster: VidurCluster, requests: Requests) -> None:
    blocks = min(replica.kv_blocks for replica in cluster.replicas)
    usable = blocks - int(cluster.watermark * blocks)
    longest = int(requests.prompt_tokens.max(initial=0))
    if -(-longest // cluster.block_size) > usable:
        raise FairleadError(
            f"a prompt of {longest:,} tokens never fits into {usable:,} KV blocks (watermark excluded), and "
            "Vidur would wait for ever: shorten the prompts or raise num_gpu_blocks"
        )
    if cluster.scheduler == "vllm" and longest > cluster.token_budget:
        raise FairleadError(
            f"a prompt of {longest:,} tokens exceeds max_num_batched_tokens ({cluster.token_budget:,}); "
            "Vidur's vllm scheduler does not split prompts and would wait for ever: raise it, or use sarathi"
        )


def _configuration(cluster: VidurCluster, requests: Requests, folder: str) -> Any:
    """Vidur's configuration; it writes itself into `folder`."""
    from vidur import config as v

    limit = int((requests.prompt_tokens + requests.output_tokens).max(initial=1)) + 1
    scheduler = (
        v.SarathiSchedulerConfig(batch_size_cap=cluster.max_num_seqs, chunk_size=cluster.token_budget)
        if cluster.scheduler == "sarathi"
        else v.VllmSchedulerConfig(
            batch_size_cap=cluster.max_num_seqs, max_tokens_in_batch=cluster.token_budget
        )
    )
    tables = cluster.replicas[0].tables
    metrics = cluster.metrics
    return v.SimulationConfig(
        cluster_config=v.ClusterConfig(
            num_replicas=len(cluster.replicas),
            replica_config=v.ReplicaConfig(
                model_name=STAND_IN,
                num_pipeline_stages=1,
                tensor_parallel_size=1,
                device="a100",
                network_device="a100_dgx",
            ),
            cache_config=v.CacheConfig(
                block_size=cluster.block_size,
                num_blocks=cluster.replicas[0].kv_blocks,
                watermark_blocks_fraction=cluster.watermark,
            ),
            replica_scheduler_config=scheduler,
        ),
        request_generator_config=v.SyntheticRequestGeneratorConfig(
            length_generator_config=v.FixedRequestLengthGeneratorConfig(max_tokens=limit)
        ),
        execution_time_predictor_config=v.RandomForrestExecutionTimePredictorConfig(
            cache_dir=f"{folder}/cache",
            kv_cache_prediction_granularity=tables.granularity,
            prediction_max_prefill_chunk_size=tables.prefill_s.shape[1] * CHUNK_STEP,
            prediction_max_batch_size=len(tables.decode_s),
            prediction_max_tokens_per_request=max(tables.max_tokens, tables.max_context),
            attention_decode_batching_overhead_fraction=0.0,
            use_native_execution_time_predictor=cluster.native,
        ),
        metrics_config=v.MetricsConfig(
            write_metrics=metrics,
            enable_chrome_trace=False,
            store_plots=False,
            store_request_metrics=metrics,
            store_batch_metrics=metrics,
            store_utilization_metrics=metrics,
            output_dir=f"{folder}/output",
        ),
    )


def _build(cluster: VidurCluster, run: VidurRun, router: Any, hooks: Hooks) -> Any:
    from vidur.execution_time_predictor import ExecutionTimePredictorRegistry
    from vidur.request_generator import RequestGeneratorRegistry
    from vidur.scheduler import GlobalSchedulerRegistry
    from vidur.simulator import Simulator
    from vidur.types import ExecutionTimePredictorType, GlobalSchedulerType, RequestGeneratorType

    class Quiet(Simulator):  # type: ignore[misc]
        """Vidur's event loop; it writes no files at the end."""

        def _write_output(self) -> None:
            pass

    class Observed(Quiet):
        """Says how late it is."""

        def _set_time(self, time: float) -> None:
            hooks.time(time)
            super()._set_time(time)

    class Given:
        """The request generator: requests that exist already."""

        def __init__(self, config: Any) -> None:
            del config

        def generate(self) -> list[Any]:
            return run.requests

    predictors: dict[int, Any] = {}

    def predictor_of(tables: VidurTables) -> Any:
        if id(tables) not in predictors:
            predictors[id(tables)] = _table_predictor(tables, configuration)
        return predictors[id(tables)]

    with tempfile.TemporaryDirectory() as folder:
        configuration = _configuration(cluster, run.sent, folder)
        if isinstance(router, str):
            kind = GlobalSchedulerType.from_str(router)
            chosen = _recording(GlobalSchedulerRegistry.get_class(kind), run)
        else:
            kind = GlobalSchedulerType.ROUND_ROBIN
            chosen = _asking(cluster, run, router, hooks, predictor_of)
        first = cluster.replicas[0].tables
        with (
            _swapped(GlobalSchedulerRegistry, GlobalSchedulerType.ROUND_ROBIN, chosen),
            _swapped(RequestGeneratorRegistry, RequestGeneratorType.SYNTHETIC, Given),
            _swapped(
                ExecutionTimePredictorRegistry,
                ExecutionTimePredictorType.RANDOM_FORREST,
                lambda **_: predictor_of(first),
            ),
        ):
            simulator = (Quiet if isinstance(router, str) else Observed)(configuration)
    hooks.started(list(simulator.scheduler._replica_schedulers.values()), run.requests)
    return simulator


def _recording(scheduler: Any, run: VidurRun) -> Any:
    """One of Vidur's own routers; where it sends the requests is written down."""

    class Recording(scheduler):  # type: ignore[misc]
        def schedule(self) -> Any:
            mapping = super().schedule()
            for replica, request in mapping:
                run.assigned[request.number] = replica.id
            return mapping

    return Recording


def _asking(
    cluster: VidurCluster, run: VidurRun, choose: Choose, hooks: Hooks, predictor_of: Callable[..., Any]
) -> Any:
    """A Vidur router that asks `choose`; each replica has its own times and blocks."""
    from dataclasses import replace

    from vidur.scheduler import BaseGlobalScheduler
    from vidur.scheduler.replica_scheduler.sarathi_replica_scheduler import SarathiReplicaScheduler
    from vidur.scheduler.replica_scheduler.vllm_replica_scheduler import VLLMReplicaScheduler

    base = SarathiReplicaScheduler if cluster.scheduler == "sarathi" else VLLMReplicaScheduler

    class Replica(base):  # type: ignore[misc, valid-type]
        def on_batch_end(self, batch: Any) -> None:
            super().on_batch_end(batch)
            hooks.batch_ended(self._replica_id.id, batch)

    class Asking(BaseGlobalScheduler):  # type: ignore[misc]
        # The base class gives all replicas one predictor and one configuration of the cache.
        def __init__(self, config: Any, replicas: dict[Any, Any]) -> None:
            self._config = config
            self._replicas = replicas
            self._num_replicas = len(replicas)
            self._request_queue: list[Any] = []
            self._ids = list(replicas)
            options = config.cluster_config
            self._replica_schedulers = {
                key: Replica(
                    replica_config=options.replica_config,
                    replica_scheduler_config=options.replica_scheduler_config,
                    cache_config=replace(options.cache_config, num_blocks=own.kv_blocks),
                    request_generator_config=config.request_generator_config,
                    replica=replica,
                    num_stages=1,
                    execution_time_predictor=predictor_of(own.tables),
                )
                for (key, replica), own in zip(replicas.items(), cluster.replicas, strict=True)
            }

        def schedule(self) -> list[tuple[Any, Any]]:
            self.sort_requests()
            mapping = []
            for request in self._request_queue:
                index = choose(request.arrived_at, request)
                run.assigned[request.number] = index
                mapping.append((self._ids[index], request))
            self._request_queue = []
            return mapping

    return Asking


def _table_predictor(tables: VidurTables, configuration: Any) -> Any:
    """Vidur's own predictor, which finds its tables ready made."""
    from vidur.execution_time_predictor.random_forrest_execution_time_predictor import (
        RandomForrestExecutionTimePredictor,
    )

    class Ready(RandomForrestExecutionTimePredictor):  # type: ignore[misc]
        def _load_predictions_from_hf(self) -> dict[str, dict[tuple[int, ...], float]]:
            return predictions(tables, STAND_IN_LAYERS)

    return Ready(
        predictor_config=configuration.execution_time_predictor_config,
        replica_config=configuration.cluster_config.replica_config,
        cache_config=configuration.cluster_config.cache_config,
    )


def predictions(tables: VidurTables, layers: int) -> dict[str, dict[tuple[int, ...], float]]:
    """The tables in the form that Vidur's predictor keeps: operator -> key -> ms per layer."""
    scale = 1e3 / layers
    tokens = [(TOKEN_STEP * (i + 1),) for i in range(len(tables.tokens_s))]
    found: dict[str, dict[tuple[int, ...], float]] = {
        name: dict.fromkeys(tokens, 0.0) for name in TOKEN_OPERATORS
    }
    # One operator carries the sum of the nine: Vidur adds them up anyway.
    found["mlp_up_proj"] = dict(zip(tokens, (tables.tokens_s * scale).tolist(), strict=True))
    found["attn_kv_cache_save"] = {(n,): 0.0 for n in range(1, tables.max_tokens + 1)}
    g = tables.granularity
    found["attn_decode"] = {
        (b + 1, g * k): value
        for b, row in enumerate((tables.decode_s * scale).tolist())
        for k, value in enumerate(row)
    }
    found["attn_prefill"] = {
        (g * k, CHUNK_STEP * (c + 1)): value
        for k, row in enumerate((tables.prefill_s * scale).tolist())
        for c, value in enumerate(row)
    }
    return found


@contextmanager
def _swapped(registry: Any, key: Any, implementation: Any) -> Iterator[None]:
    """Another implementation in one of Vidur's registries, for a while."""
    usual = registry.get_class(key)
    registry._registry[key] = implementation
    try:
        yield
    finally:
        registry._registry[key] = usual
