"""Scenarios: a cluster, its workload and what counts as good, in one validated file.

Scenarios that ship with Fairlead are YAML files in `scenarios/`; a user's own file is accepted wherever
a name is. The docstring under each key is its help text.
"""

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import yaml
from pydantic import AfterValidator, Field, ValidationError, field_validator, model_validator

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.loader import load_yaml
from fairlead.section import Section, did_you_mean, first_problem, invalid
from fairlead.workload.arrivals import Arrivals, Replay
from fairlead.workload.faults import Fault, check_rules, plan
from fairlead.workload.lengths import LengthModel, rows_for_training, traces_in
from fairlead.workload.mooncake import MooncakeTrace
from fairlead.workload.requests import Requests
from fairlead.workload.sessions import Sessions
from fairlead.workload.tables import table_text
from fairlead.workload.timing import TIMING_FILES, TimingSection
from fairlead.workload.traces import Lengths, Recording, part_of, window

SUITE_PREFIX = "suite/"
"""In front of the name of a suite (`suites.py`)."""

SPLITS = ("train", "validate", "evaluate")
"""What a run is for: the first name of its random streams."""


def check_load(load: float) -> float:
    """`load`, if it is a sensible fraction of the cluster's capacity.

    Raises:
        FairleadError: unless 0 < load < 1.5.
    """
    # Written so that a NaN is refused too.
    if not 0 < load < 1.5:
        raise FairleadError(
            f"load {load:g} is not between 0 and 1.5: give a fraction of capacity, for example 0.7"
        )
    return load


class ReplicaGroup(Section):
    """Replicas that are alike."""

    device: str
    """The accelerator, for example a100-80g."""
    count: int = Field(default=1, ge=1, le=1024)
    """How many replicas."""
    tensor_parallel: int = Field(default=1, ge=1, le=64)
    """Devices per replica."""
    slowdown: float = Field(default=1.0, gt=0, le=1000)
    """Every iteration takes this many times as long as on the healthy device."""
    timing: TimingSection | None = None
    """How long iterations take; default: derived from the facts about model and device."""


class EngineOptions(Section):
    """The engine's options, under vLLM's names and with its defaults."""

    max_num_batched_tokens: int = Field(default=2048, ge=1)
    """Tokens per iteration."""
    max_num_seqs: int = Field(default=256, ge=1)
    """Sequences in the running batch."""
    block_size: int = Field(default=16, ge=1)
    """Tokens per KV block."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of device memory for weights, activations and KV cache."""
    num_gpu_blocks: int | None = Field(default=None, ge=1)
    """KV blocks per replica; default: as many as fit."""
    enable_prefix_caching: bool = False
    """Whether blocks stay cached, so that a prompt that begins like an earlier one computes only its rest."""
    scheduler: Literal["vllm", "sarathi", "vllm_v0"] = "vllm"
    """vLLM V1, or the schedulers of Vidur: chunked prompts beside decodes, or prompts first and whole."""
    watermark: float | None = Field(default=None, ge=0, lt=1)
    """Share of blocks that an admission leaves free; only for sarathi and vllm_v0 (default: 0.01)."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.watermark is not None and self.scheduler == "vllm":
            raise invalid("watermark: the scheduler vllm has none, only sarathi and vllm_v0 do")
        if self.enable_prefix_caching and self.scheduler != "vllm":
            raise invalid(f"enable_prefix_caching: the scheduler {self.scheduler} cannot, only vllm can")
        if self.scheduler == "vllm" and self.max_num_batched_tokens < self.max_num_seqs:
            raise invalid(
                f"max_num_batched_tokens ({self.max_num_batched_tokens}) must be at least max_num_seqs "
                f"({self.max_num_seqs}), as in vLLM: each running sequence needs a token per iteration"
            )
        return self


class Workload(Section):
    """When requests come and how long they are: `arrivals` with `lengths`, or `sessions`, or a `trace`."""

    arrivals: Arrivals | None = None
    """When requests arrive."""
    lengths: LengthModel | None = None
    """Their prompt and output tokens."""
    sessions: Sessions | None = None
    """Conversations of several turns, whose prompts share their beginnings."""
    trace: MooncakeTrace | None = None
    """A recorded trace that says which prompts share their beginnings."""
    max_tokens: int | None = Field(default=None, ge=1)
    """The clients' limit on the output, in tokens; longer outputs stop there."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        whole = [name for name in ("sessions", "trace") if getattr(self, name) is not None]
        parts = [name for name in ("arrivals", "lengths") if getattr(self, name) is not None]
        if len(whole) > 1 or (whole and parts):
            raise invalid(
                f"{' and '.join(whole + parts)} exclude each other: give arrivals with lengths, or sessions, "
                "or a trace"
            )
        if len(parts) == 1:
            missing = "lengths" if parts == ["arrivals"] else "arrivals"
            raise invalid(f"{missing} is missing: {parts[0]} alone do not make requests")
        if not whole and not parts:
            raise invalid("is empty: give arrivals with lengths, or sessions, or a trace")
        self._check_shares()
        return self

    def _check_shares(self) -> None:
        """Refuse times and lengths of one trace that are parted at different rows."""
        arrivals = self.sessions.starts if self.sessions is not None else self.arrivals
        lengths = self.sessions.lengths if self.sessions is not None else self.lengths
        if not isinstance(arrivals, Replay):
            return
        for each in traces_in(lengths):
            if each.path == arrivals.path and each.train_share != arrivals.train_share:
                raise invalid(
                    f"the times of {arrivals.path.name} have train_share {arrivals.train_share:g}, its "
                    f"lengths {each.train_share:g}: give both the same, so that they are of the same rows"
                )

    def requests(self, count: int, rate: float, seed: int, split: str, block_size: int | None) -> Requests:
        """`count` requests at `rate` requests/s, checked by `generate`.

        With a `block_size` they say what their blocks contain, where the workload knows it.
        """
        whole = self.sessions or self.trace
        if whole is not None:
            return whole.requests(count, rate, seed, split, self.max_tokens, block_size)
        assert self.arrivals is not None
        lengths = self.drawn_lengths(count, seed, split)
        return Requests(self.arrivals.times(count, rate, seed, split), *lengths)

    def drawn_lengths(self, count: int, seed: int, split: str) -> Lengths:
        """The lengths of `count` requests, of a workload of arrivals and lengths; arrivals do not matter."""
        assert self.lengths is not None
        prompt_tokens, output_tokens = self.lengths.draw(count, seed, split)
        if self.max_tokens is not None:
            output_tokens = np.minimum(output_tokens, self.max_tokens)
        return Lengths(prompt_tokens, output_tokens)

    def rows_for_training(self) -> int | None:
        """How many requests the training split can draw; None where nothing limits it."""
        if self.trace is not None:
            return self.trace.rows_for_training()
        return None if self.lengths is None else rows_for_training(self.lengths)

    @property
    def is_recorded(self) -> bool:
        """Whether arrivals or lengths are from a trace, of which training and validation share a part."""
        lengths = self.lengths if self.sessions is None else self.sessions.lengths
        starts = self.arrivals if self.sessions is None else self.sessions.starts
        return self.trace is not None or isinstance(starts, Replay) or bool(traces_in(lengths))

    def recording(self, count: int, rate: float) -> Recording | None:
        """The trace that the arrivals of `count` requests at `rate` requests/s come from, if they do."""
        if self.trace is not None:
            return self.trace.recording(count)
        if self.sessions is not None:
            return self.sessions.recording(count, rate, self.max_tokens)
        return self.arrivals.recording(count) if isinstance(self.arrivals, Replay) else None


class ViewOptions(Section):
    """What the router is told, beyond what it sees pass by."""

    scrape_interval_s: float = Field(default=1.0, gt=0, le=3600)
    """Seconds between two readings of the engines' metrics."""
    speeds_declared: bool = True
    """Whether each replica's speed is declared to the routers; if not, all are like the fastest at first."""
    prefix_memory_blocks: int | None = Field(default=None, ge=0)
    """KV blocks of prompts and answers that a router remembers per replica; default: as many as it has,
    shared evenly among the routers. Only where the engine caches prefixes."""
    prompt_estimate_error: float = Field(default=0.0, ge=0, lt=1)
    """0.3: the router's token counts of prompts are off by a factor drawn evenly from 0.7 to 1.3."""


class SLO(Section):
    """A request is good when it meets both."""

    ttft_s: float = Field(default=1.0, gt=0)
    """Time to first token, seconds."""
    tpot_s: float = Field(default=0.05, gt=0)
    """Time per output token after the first, seconds."""


Load = Annotated[float, AfterValidator(check_load)]


class Scenario(Section):
    """A cluster, its workload, the loads to try and what counts as good."""

    name: str = Field(min_length=1)
    """The file's name without .yaml, unless given."""
    description: str = ""
    """One or two sentences for `fairlead scenarios`."""
    model: str = "llama-3-8b"
    """The model that every replica serves."""
    replicas: tuple[ReplicaGroup, ...] = Field(min_length=1)
    """Groups of equal replicas, numbered in this order."""
    routers: int = Field(default=1, ge=1, le=64)
    """Routers that share the replicas, each with its share of the requests and its own ledger."""
    engine: EngineOptions = EngineOptions()
    workload: Workload
    faults: tuple[Fault, ...] = ()
    """Replicas that slow down for a while, or die and return; none begins after the last arrival."""
    loads: tuple[Load, ...] = Field(default=(0.5, 0.7, 0.9), min_length=1)
    """Fractions of measured capacity."""
    view: ViewOptions = ViewOptions()
    slo: SLO = SLO()

    @field_validator("loads")
    @classmethod
    def _check_loads(cls, loads: tuple[float, ...]) -> tuple[float, ...]:
        twice = [load for position, load in enumerate(loads) if load in loads[:position]]
        if twice:
            raise invalid(f"{twice[0]:g} is given twice: name each load once")
        return loads

    @model_validator(mode="after")
    def _check_faults(self) -> Self:
        check_rules(self.faults, self.num_replicas)
        return self

    @model_validator(mode="after")
    def _check_memory(self) -> Self:
        if self.view.prefix_memory_blocks is not None and not self.engine.enable_prefix_caching:
            raise invalid(
                "view.prefix_memory_blocks: no prefix is cached here, so that routers have none to remember; "
                "leave it out, or set engine.enable_prefix_caching"
            )
        return self

    @property
    def num_replicas(self) -> int:
        """Replicas of all groups together."""
        return sum(group.count for group in self.replicas)

    def hash(self, keys: Collection[str] | None = None) -> str:
        """16 hex digits that change with anything that could change a result.

        Name and description do not count; of files, the content counts and not the path.

        Args:
            keys: the top-level keys to cover, for example {"model", "workload"}; default: all.
        """
        content = _by_content(self.model_dump(mode="json", exclude={"name", "description"}))
        if keys is not None:
            content = {key: content[key] for key in keys}
        return _digest(json.dumps(content, sort_keys=True).encode())

    def replace(self, **changes: Any) -> "Scenario":
        """A copy with other values for some top-level keys, validated as a file would be.

        Raises:
            FairleadError: naming the key.
        """
        content = {name: getattr(self, name) for name in type(self).model_fields}
        return _validate({**content, **changes}, self.name, Path())


def _by_content(value: Any) -> Any:
    """A dumped section with every file that it mentions replaced by a digest of what is in it."""
    if isinstance(value, list):
        return [_by_content(each) for each in value]
    if not isinstance(value, dict):
        return value
    found = {key: _by_content(each) for key, each in value.items()}
    for key in ("path", *TIMING_FILES):
        if isinstance(found.get(key), str):
            found[key] = _digest(_read_bytes(Path(found[key])))
    if isinstance(found.get("table"), str):
        found["table"] = _digest(table_text(found["table"]).encode())
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FairleadError(f"cannot read the trace {path}: {error.strerror}") from None


def scenario_names() -> list[str]:
    """The scenarios that ship with Fairlead, sorted."""
    entries = (resources.files("fairlead.workload") / "scenarios").iterdir()
    return sorted(entry.name.removesuffix(".yaml") for entry in entries if entry.name.endswith(".yaml"))


def load_scenario(name_or_file: str | Path) -> Scenario:
    """A scenario by name, or from a YAML file of the user's own.

    A file ends in .yaml or .yml, has a directory in front, or exists; names come first. Paths inside a file
    are relative to it.

    Raises:
        FairleadError: one line that names the file and the key, and what was probably meant.
    """
    text, path = str(name_or_file), Path(name_or_file)
    if text in scenario_names():
        directory = resources.files("fairlead.workload") / "scenarios"
        content = (directory / f"{text}.yaml").read_text(encoding="utf-8")
        return _validate(_parse(content, text), text, Path(), name=text)
    if text.startswith(SUITE_PREFIX) and path.suffix not in (".yaml", ".yml"):
        raise FairleadError(
            f"{text} is a suite of scenarios, and one is needed here: name one of `fairlead scenarios "
            f"--suite {text.removeprefix(SUITE_PREFIX)}`"
        )
    if path.suffix not in (".yaml", ".yml") and len(path.parts) == 1 and not path.is_file():
        raise FairleadError(
            f"unknown scenario {text!r}; {did_you_mean(text, scenario_names())}; or the path of a YAML file"
        )
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise FairleadError(f"cannot read the scenario file {text}: {reason}") from None
    return _validate(_parse(content, text), text, path.resolve().parent, name=path.stem)


def _parse(text: str, where: str) -> dict[str, Any]:
    try:
        content = load_yaml(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}:" if mark else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise FairleadError(f"{where}:{line} not valid YAML: {problem}") from None
    if not isinstance(content, dict):
        raise FairleadError(f"{where}: a scenario is a mapping of keys, for example 'replicas: [...]'")
    return content


def _validate(content: dict[str, Any], where: str, directory: Path, name: str | None = None) -> Scenario:
    if name is not None:
        content = {"name": name, **content}
    try:
        return Scenario.model_validate(content, context={"directory": directory})
    except ValidationError as error:
        raise first_problem(error, where) from None
    except FairleadError as error:
        raise FairleadError(f"{where}: {error}") from None


def generate(scenario: Scenario, *, requests: int, rate: float, seed: int, split: str) -> Requests:
    """The requests of one run: a pure function of its arguments.

    Arrivals and lengths come from separate streams that start with `split`, so that training and evaluation
    never share one. Another rate keeps their noise: it only stretches the arrival times, unless bursts or a
    rhythm have seconds of their own. More requests only continue the run (traces aside: their window depends
    on the number).

    Args:
        scenario: whose workload it is.
        requests: how many, at least 1.
        rate: mean arrivals per second, for the whole cluster.
        seed: not negative.
        split: "train", "validate" (to choose among trained policies) or "evaluate".

    Raises:
        FairleadError: for arguments out of range, and for a trace that is bad or too short.
    """
    if requests < 1:
        raise FairleadError(f"requests = {requests}; at least 1 is needed")
    if not (np.isfinite(rate) and rate > 0):
        raise FairleadError(f"rate = {rate:g} requests/s; it must be positive and finite")
    if seed < 0:
        raise FairleadError(f"seed = {seed}; it must not be negative")
    if split not in SPLITS:
        raise FairleadError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    engine = scenario.engine
    block_size = engine.block_size if engine.enable_prefix_caching else None
    drawn = scenario.workload.requests(requests, rate, seed, split, block_size)
    extra: dict[str, Any] = {}
    if scenario.routers > 1:
        extra["router"] = _routers(drawn, scenario.routers, seed, split)
    error = scenario.view.prompt_estimate_error
    if error > 0.0:
        factor = rng.stream(seed, split, "estimates").uniform(1.0 - error, 1.0 + error, size=requests)
        extra["estimate"] = np.maximum(np.rint(drawn.prompt_tokens * factor), 1).astype(np.int64)
    if scenario.faults:
        until_s = float(drawn.arrival_s[-1])
        extra["faults"] = plan(scenario.faults, scenario.num_replicas, until_s, seed, split)
    return replace(drawn, **extra)


def check_runs(
    scenario: Scenario, *, requests: int, rate: float, seeds: Sequence[int], split: str = "evaluate"
) -> None:
    """Refuse runs of which some would replay the same recorded arrivals: they are not independent.

    Lengths alone may be recorded: runs then differ by their arrivals, and intervals speak of that trace's
    lengths. Where the starts of sessions are recorded, what is counted is sessions, whose number rises with
    the rate.

    Args:
        scenario: whose workload it is.
        requests: in each run.
        rate: mean arrivals per second, for the whole cluster.
        seeds: one run each.
        split: whose rows are replayed.

    Raises:
        FairleadError: if there are more seeds than disjoint windows of the trace, seeds that share one, or a
            trace that is bad or too short.
    """
    recording = scenario.workload.recording(requests, rate)
    if recording is None or not seeds:
        return
    path, rows, train_share, needed = recording
    window(rows, needed, train_share, seeds[0], split, path)  # refuses a trace that is too short for one run
    available, wanted = len(part_of(rows, train_share, split)), len(seeds)
    purpose = {"train": "training", "validate": "training and validation", "evaluate": "evaluation"}[split]
    windows = available // needed
    if wanted > windows:
        each = f"{requests:,} requests" + ("" if needed == requests else f" ({needed:,} sessions)")
        fewer = f"{available // wanted} requests each" if needed == requests else "fewer requests"
        raise FairleadError(
            f"{scenario.name}: {wanted} runs of {each} need {wanted * needed:,} recorded arrivals, and "
            f"{available:,} are for {purpose}: ask for at most {windows} seed{'s' * (windows > 1)}, or "
            f"{fewer}; runs that share arrivals are not independent"
        )
    if len({seed % windows for seed in seeds}) < wanted:
        raise FairleadError(
            f"{scenario.name}: {available:,} recorded arrivals for {purpose} make {windows} runs, and of the "
            f"seeds {', '.join(map(str, seeds))} some replay the same one: give consecutive seeds"
        )


def _routers(drawn: Requests, routers: int, seed: int, split: str) -> npt.NDArray[np.int64]:
    """Which router each request comes to: evenly drawn, one for each conversation."""
    router = rng.stream(seed, split, "routers").integers(routers, size=len(drawn))
    if drawn.session is None:
        return router
    homes = rng.stream(seed, split, "routers", "sessions").integers(routers, size=drawn.session.max() + 1)
    return np.where(drawn.session == 0, router, homes[drawn.session])
