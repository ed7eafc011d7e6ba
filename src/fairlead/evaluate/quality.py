"""Contests measured, router by router, and kept: what was run once is not run again.

Each router's runs in a scenario are a file of their own, named after everything that could change them:
another policy, scenario, seed or simulator is another file. So an interrupted measurement goes on, and a new
policy costs its own runs only.
"""

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fairlead.workload
from fairlead.compiled import source_digest
from fairlead.errors import FairleadError
from fairlead.evaluate.contest import NEEDED, Contest, Values
from fairlead.evaluate.tournament import simulate
from fairlead.files import write_text
from fairlead.policy.catalogue import Entry, find_router
from fairlead.policy.heuristics import HEURISTICS, Lookahead
from fairlead.policy.packaged import policy_path
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.metrics import METRICS as ALL_METRICS
from fairlead.simulator.metrics import summarise
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload.scenario import Scenario, check_runs

REPLICAS_PER_RUN = 4
"""Larger clusters serve more requests in a run, in proportion: they take longer to fill."""
LOOKAHEAD_UP_TO = 16
"""Replicas: in larger clusters lookahead takes too long to take part."""


@dataclass(frozen=True)
class Plan:
    """What is measured in every scenario."""

    policies: tuple[str, ...]
    """Names or files: the training seeds of one kind of policy. A folder: SCENARIO.onnx for each scenario."""
    dials: tuple[float, ...]
    seeds: tuple[int, ...]
    requests: int
    """In each run on up to 4 replicas."""
    lookahead: bool = True
    loads: tuple[float, ...] | None = None
    """Instead of each scenario's own."""
    specialists: tuple[Path, ...] = ()
    """Folders with a policy SCENARIO.onnx for some of the scenarios; the first that has one gives it."""

    def requests_in(self, scenario: Scenario) -> int:
        """Requests of a run in this scenario."""
        return self.requests * max(1, scenario.num_replicas // REPLICAS_PER_RUN)

    def policies_of(self, scenario: Scenario) -> tuple[str, ...]:
        """The policies that are measured in this scenario.

        Raises:
            FairleadError: if a folder of policies has none for it.
        """
        return tuple(_policy_in(text, scenario) for text in self.policies)

    def specialist_of(self, scenario: Scenario) -> Path | None:
        """The policy that was trained for this scenario alone, if there is one."""
        paths = [folder / f"{scenario.name}.onnx" for folder in self.specialists]
        return next((path for path in paths if path.is_file()), None)


def check(plan: Plan, scenarios: Sequence[Scenario]) -> Plan:
    """The plan with the default dial among its settings, checked before anything runs.

    Raises:
        FairleadError: for fewer than two seeds or more than a recorded trace has runs for, and for policies
            or dials that cannot be used.
    """
    if len(plan.seeds) < 2:
        raise FairleadError("intervals need at least 2 evaluation seeds: --seeds 2 or more")
    for folder in plan.specialists:
        if not folder.is_dir():
            raise FairleadError(f"--specialists {folder}: there is no such folder")
    dials = tuple(sorted({*plan.dials, DEFAULT_FAVOR}))
    for policy in {policy for scenario in scenarios for policy in plan.policies_of(scenario)}:
        for dial in dials:
            find_router(f"{policy}@{dial:g}")
    for scenario in scenarios:
        if scenario.workload.is_recorded:
            for load in plan.loads or scenario.loads:
                rate = load * capacity_rps(scenario)
                check_runs(scenario, requests=plan.requests_in(scenario), rate=rate, seeds=plan.seeds)
    return Plan(**{**vars(plan), "dials": dials})


def _policy_in(text: str, scenario: Scenario) -> str:
    folder = Path(text)
    if not folder.is_dir():
        return text
    path = folder / f"{scenario.name}.onnx"
    if not path.is_file():
        raise FairleadError(f"{folder} has no policy for {scenario.name}: there is no {path.name}")
    return str(path)


def is_unequal(scenario: Scenario) -> bool:
    """Whether replicas differ in hardware or speed."""
    kinds = {g.model_copy(update={"count": 1}).model_dump_json() for g in scenario.replicas}
    return len(kinds) > 1


def measure(
    plan: Plan,
    scenario: Scenario,
    folder: Path,
    progress: Callable[[str], None] = lambda router: None,
) -> Contest:
    """The contest of one scenario; what lies in `folder` from before is used.

    Args:
        plan: checked.
        scenario: where.
        folder: for the runs, one file for each router.
        progress: told each router that is run.

    Raises:
        FairleadError: as `simulate`.
    """
    loads = plan.loads or scenario.loads

    def runs(text: str) -> Values:
        return _runs(plan, scenario, loads, text, folder, progress)

    def at_dials(text: str | Path) -> dict[float, Values]:
        return {dial: runs(f"{text}@{dial:g}") for dial in plan.dials}

    policies = [at_dials(each) for each in plan.policies_of(scenario)]
    specialist = plan.specialist_of(scenario)
    looks = plan.lookahead and scenario.num_replicas <= LOOKAHEAD_UP_TO
    return Contest(
        scenario=scenario.name,
        loads=tuple(loads),
        replicas=scenario.num_replicas,
        unequal=is_unequal(scenario),
        heuristics={name: runs(name) for name in HEURISTICS},
        learned={dial: [each[dial] for each in policies] for dial in plan.dials},
        lookahead=at_dials("lookahead") if looks else {},
        specialist=at_dials(specialist) if specialist is not None else {},
    )


def _runs(
    plan: Plan,
    scenario: Scenario,
    loads: Sequence[float],
    text: str,
    folder: Path,
    progress: Callable[[str], None],
) -> Values:
    entry = find_router(text)
    requests = plan.requests_in(scenario)
    identity = [scenario.hash(), list(loads), list(plan.seeds), requests, *_identity(text, entry)]
    path = folder / f"{re.sub(r'[^A-Za-z0-9.@-]', '_', entry.name)}-{_digest(identity)}.json"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        progress(entry.name)
        rows = [
            [
                summarise(outcomes, scenario.slo.ttft_s, scenario.slo.tpot_s)
                for outcomes in simulate(scenario, load, entry, plan.seeds, requests)
            ]
            for load in loads
        ]
        content = {m: [[row[m] for row in by_seed] for by_seed in rows] for m in ALL_METRICS}
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(content))
    return {metric: np.array(content[metric], np.float64) for metric in NEEDED}


def _identity(text: str, entry: Entry) -> list[object]:
    """What a router is: for a policy its file's content, whatever it is called."""
    if entry.kind == "heuristic":
        return [entry.name]
    if isinstance(entry.router, Lookahead):
        return ["lookahead", list(entry.router.weights), entry.router.knows]
    base, _, dial = text.rpartition("@")
    return [hashlib.sha256(policy_path(base).read_bytes()).hexdigest(), float(dial)]


def _digest(identity: list[object]) -> str:
    digest = hashlib.sha256(source_digest().encode())
    for source in sorted(Path(fairlead.workload.__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    digest.update(json.dumps(identity).encode())
    return digest.hexdigest()[:16]
