"""A small tournament, made by hand: two scenarios, four routers, five seeds."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fairlead.evaluate.conclusions import build_results
from fairlead.evaluate.per_request import RequestWriter
from fairlead.evaluate.results import Configuration, Results, RouterInfo, Row, write_results
from fairlead.simulator.metrics import summarise
from fairlead.simulator.outcomes import Outcomes

# Factor on the TTFT and on the decode time, by router.
ROUTERS = {"lor": (1.0, 1.0), "least_prefill": (0.6, 0.98), "lookahead": (0.7, 0.72), "learned": (0.72, 0.75)}
SEEDS = [0, 1, 2, 3, 4]
REQUESTS = 300


def outcomes_of(router: str, load: float, seed: int, requests: int = REQUESTS) -> Outcomes:
    """Requests that the seed decides, served at a pace that the router and the load decide."""
    rng = np.random.default_rng(seed)
    arrival = np.cumsum(rng.exponential(0.5, requests))
    output = rng.integers(1, 400, requests)
    ttft, decode = ROUTERS[router]
    own = np.random.default_rng([seed, list(ROUTERS).index(router)])
    first = arrival + ttft * load * rng.lognormal(-1.5, 0.8, requests) * own.uniform(0.9, 1.1, requests)
    finish = first + decode * load * 0.03 * (output - 1) * own.uniform(0.95, 1.05, requests)
    replica = own.integers(0, 4, requests)
    zeros = np.zeros(requests, dtype=np.int64)
    return Outcomes(arrival, output, output, replica, first, finish, zeros, 4)


@pytest.fixture(scope="session")
def configuration() -> Configuration:
    loads = {"chat-equal": [0.7, 0.9], "chat-unequal": [0.8]}
    kinds = {"lookahead": "lookahead", "learned": "learned"}
    return Configuration(
        scenarios={name: {"name": name, "slo": {"ttft_s": 1.0, "tpot_s": 0.05}} for name in loads},
        loads=loads,
        capacity_rps={"chat-equal": 12.5, "chat-unequal": 8.0},
        routers=[RouterInfo(name=name, kind=kinds.get(name, "heuristic")) for name in ROUTERS],  # type: ignore[arg-type]
        seeds=SEEDS,
        requests=REQUESTS,
        command="fairlead evaluate --scenario chat-equal",
    )


@pytest.fixture(scope="session")
def rows(configuration: Configuration) -> list[Row]:
    return [
        Row(
            scenario=scenario,
            load=load,
            router=router,
            seed=seed,
            rate_rps=load * configuration.capacity_rps[scenario],
            **summarise(outcomes_of(router, load, seed), 1.0, 0.05),
        )
        for scenario, load in configuration.settings
        for router in ROUTERS
        for seed in SEEDS
    ]


@pytest.fixture(scope="session")
def results(configuration: Configuration, rows: list[Row]) -> Results:
    return build_results(configuration, rows)


@pytest.fixture(scope="session")
def make_run(configuration: Configuration, results: Results) -> Callable[[Path], Path]:
    """Writes a complete run, as a tournament does, into a directory."""

    def make(directory: Path) -> Path:
        with RequestWriter(directory, configuration) as writer:
            for scenario, load in configuration.settings:
                for router in ROUTERS:
                    for seed in SEEDS:
                        writer.write(scenario, load, router, seed, outcomes_of(router, load, seed))
        write_results(directory, results)
        return directory

    return make
