"""Routers inside the real Vidur: the same requests, hardware and view as in Fairlead's simulator."""

import math
from collections.abc import Hashable, Sequence
from typing import Any, Literal

from fairlead.calibrate.operators import VidurTables, vidur_tables
from fairlead.errors import FairleadError
from fairlead.policy.catalogue import Entry
from fairlead.policy.heuristics import Lookahead
from fairlead.policy.router import Router
from fairlead.section import Section
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.fleet import Fleet, build_fleet
from fairlead.simulator.outcomes import Outcomes
from fairlead.simulator.schedulers import VIDUR_WATERMARK
from fairlead.simulator.timing import Coefficients
from fairlead.vidur.ledger import Ledger
from fairlead.vidur.offline import VERSION, Hooks, VidurCluster, VidurReplica, VidurRun, check_installed
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, check_load, check_runs, generate

NAME = f"vidur {VERSION}"
"""How results call this simulator."""

SCHEDULERS: dict[str, Literal["sarathi", "vllm"]] = {
    "sarathi": "sarathi",
    "vllm_v0": "vllm",
    "vllm": "sarathi",
}
"""The engine's scheduler -> Vidur's; the last one is a stand-in, of which the results carry a note."""

_SIMULATED = {
    "Scenario": ("name", "description", "model", "replicas", "engine", "workload", "loads", "view", "slo"),
    "ReplicaGroup": ("device", "count", "tensor_parallel", "slowdown", "timing"),
    "EngineOptions": (
        "scheduler",
        "watermark",
        "max_num_batched_tokens",
        "max_num_seqs",
        "block_size",
        "gpu_memory_utilization",
        "num_gpu_blocks",
    ),
    "Workload": ("arrivals", "lengths", "sessions", "trace", "max_tokens"),
    "ViewOptions": ("scrape_interval_s", "speeds_declared"),
}
"""The keys of a scenario that have an effect in Vidur too; all others must have their default."""


def check(scenarios: Sequence[Scenario], entries: Sequence[Entry]) -> None:
    """Refuse what Vidur cannot do, before anything runs.

    Raises:
        FairleadError: Vidur is missing, a scenario uses what it lacks, or a router needs what it cannot
            tell.
    """
    check_installed()
    for entry in entries:
        if isinstance(entry.router, Lookahead):
            raise FairleadError(
                f"{entry.name} forecasts with Fairlead's own engine from its full state, which Vidur does "
                "not have: leave it out with --simulator vidur"
            )
    for scenario in scenarios:
        _check_section(scenario, scenario.name)
        for group in scenario.replicas:
            _check_section(group, f"{scenario.name}: replicas")
        for key in ("engine", "workload", "view"):
            _check_section(getattr(scenario, key), f"{scenario.name}: {key}")


def _check_section(section: Section, where: str) -> None:
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if name not in _SIMULATED[type(section).__name__] and value != field.get_default(
            call_default_factory=True
        ):
            raise FairleadError(f"{where}: Vidur cannot simulate {name} = {value}; use --simulator fairlead")


def notes(scenarios: Sequence[Scenario]) -> list[str]:
    """What a reader of the results must know: where the two simulators are not given the same."""
    found = []
    stood_in = [s.name for s in scenarios if s.engine.scheduler == "vllm"]
    if stood_in:
        found.append(
            f"Vidur has no scheduler like vLLM V1: its sarathi, with max_num_batched_tokens as the chunk, "
            f"stands in for it in {', '.join(stood_in)}"
        )
    if any(s.engine.scheduler == "vllm_v0" for s in scenarios):
        found.append(
            f"the limit on a batch of prompts is their sum in Vidur {VERSION}; Fairlead's vllm_v0 counts the "
            "longest times their number, as older versions did"
        )
    return found


def _watermark(scenario: Scenario) -> float:
    """Share of the blocks that admission leaves free; vLLM V1 has none, so its stand-in gets none."""
    if scenario.engine.scheduler == "vllm":
        return 0.0
    return VIDUR_WATERMARK if scenario.engine.watermark is None else scenario.engine.watermark


def simulate(
    scenario: Scenario, load: float, entry: Entry, seeds: Sequence[int], requests: int
) -> list[Outcomes]:
    """As `tournament.simulate`, in Vidur: one run for each seed, with the same arrivals.

    The load is a fraction of the capacity that Fairlead's simulator measures, so that the rates agree.

    Raises:
        FairleadError: as there; Vidur stops (it fails when requests are preempted).
    """
    rate = check_load(load) * capacity_rps(scenario)
    check_runs(scenario, requests=requests, rate=rate, seeds=seeds)
    arrivals = [generate(scenario, requests=requests, rate=rate, seed=s, split="evaluate") for s in seeds]
    fleet = build_fleet(scenario)
    cluster = _cluster(scenario, fleet, arrivals)
    assert not isinstance(entry.router, Lookahead)
    found = []
    for seed, each in zip(seeds, arrivals, strict=True):
        hooks = _Observed(entry.router, fleet, each, seed)
        run = VidurRun(cluster, each, hooks.choose, hooks)
        run.run()
        found.append(run.outcomes())
    return found


def _cluster(scenario: Scenario, fleet: Fleet, arrivals: Sequence[Requests]) -> VidurCluster:
    longest = max(int((each.prompt_tokens + each.output_tokens).max(initial=1)) for each in arrivals)
    scheduler = SCHEDULERS[scenario.engine.scheduler]
    tables: dict[Hashable, VidurTables] = {}
    replicas = []
    for r, blocks in enumerate(fleet.kv_blocks.tolist()):
        model = fleet.model(r)
        # Replicas that are alike share a table object, or have equal coefficients.
        alike: Hashable = model if isinstance(model, Coefficients) else id(model)
        if alike not in tables:
            tables[alike] = vidur_tables(
                model, max_tokens=fleet.token_budget, max_seqs=fleet.max_num_seqs, max_context=longest
            )
        replicas.append(VidurReplica(tables[alike], blocks))
    return VidurCluster(
        replicas,
        scheduler,
        fleet.token_budget,
        fleet.max_num_seqs,
        fleet.block_size,
        watermark=_watermark(scenario),
    )


class _Observed(Hooks):
    """A router of ours inside Vidur: keeps its ledger, scrapes, asks."""

    def __init__(self, router: Router, fleet: Fleet, requests: Requests, seed: int) -> None:
        self.router = router
        self.ledger = Ledger(fleet)
        self.interval_s = self.next_scrape_s = fleet.scrape_interval_s
        self.sessions = requests.session
        router.reset(1, fleet.num_replicas, seed)

    def started(self, schedulers: Sequence[Any], requests: Sequence[Any]) -> None:
        self.schedulers, self.requests = schedulers, requests

    def time(self, now_s: float) -> None:
        if now_s >= self.next_scrape_s:
            latest = math.floor(now_s / self.interval_s) * self.interval_s
            self.ledger.scrape(latest, self.schedulers, self.requests)
            self.next_scrape_s = latest + self.interval_s

    def batch_ended(self, replica: int, batch: Any) -> None:
        self.ledger.batch_ended(replica, batch)

    def choose(self, now_s: float, request: Any) -> int:
        session = 0 if self.sessions is None else int(self.sessions[request.number])
        view = self.ledger.view(now_s, request.num_prefill_tokens, session)
        replica = int(self.router.route(view)[0])
        self.ledger.routed(request.number, replica, now_s, request.num_prefill_tokens, session)
        return replica
