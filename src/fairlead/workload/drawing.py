"""The same scenario on hardware drawn at random: `chat-undeclared~3`.

A policy that only ever sees one cluster learns that cluster. Trained on many that are drawn at random, it has
to learn what they have in common (*domain randomisation*: Tobin et al., 2017, arXiv:1703.06907).
"""

import math
import re
from typing import Any

from fairlead.errors import FairleadError
from fairlead.rng import stream
from fairlead.workload.scenario import Scenario

HARDWARE = (
    ("llama-3-8b", "a10", 1),
    ("llama-3-8b", "a100-80g", 1),
    ("llama-3-8b", "h200", 1),
    ("qwen2.5-7b", "a10", 1),
    ("qwen2.5-7b", "a100-80g", 1),
    ("qwen2.5-7b", "h200", 1),
    ("qwen2.5-32b", "a10", 4),
    ("qwen2.5-32b", "a100-80g", 2),
    ("qwen2.5-32b", "h200", 1),
)
"""What is drawn: model, device, tensor parallel. No pair of model and device is one of
`suite/hardware`: that is the test of hardware that scenarios without shared prefixes are never drawn on."""

SLOWDOWN = (1.5, 4.0)
"""How many times slower than the first group another one is: log-uniform between these."""


def split_draw(text: str) -> tuple[str, int | None]:
    """`NAME_OR_FILE~3` as the name and 3; without a number behind a tilde the text alone."""
    found = re.fullmatch(r"(.+)~([0-9]+)", text)
    return (found[1], int(found[2])) if found else (text, None)


def with_drawn_hardware(scenario: Scenario, draw: int) -> Scenario:
    """The scenario on hardware number `draw`, named `NAME~draw`; as many replicas, in as many groups.

    Where the scenario has several groups, the drawn ones have other sizes, and each but the first is 1.5 to 4
    times slower. Loads are fractions of capacity, so the requests become more or fewer with the hardware.

    Raises:
        FairleadError: where replicas have timings of their own, or KV blocks are given by number: drawn
            hardware has others.
    """
    if (
        any(group.timing is not None for group in scenario.replicas)
        or scenario.engine.num_gpu_blocks is not None
    ):
        raise FairleadError(
            f"{scenario.name}~{draw}: timing and num_gpu_blocks are of hardware that the scenario knows; "
            "without them it can be drawn on other hardware"
        )
    random = stream(draw, "hardware")
    model, device, parallel = HARDWARE[int(random.integers(len(HARDWARE)))]
    count, groups = scenario.num_replicas, len(scenario.replicas)
    # Where each group but the first begins: all different, so that none is empty.
    begins = sorted((1 + random.choice(count - 1, groups - 1, replace=False)).tolist())
    sizes = [end - begin for begin, end in zip([0, *begins], [*begins, count], strict=True)]
    low, high = (math.log(factor) for factor in SLOWDOWN)
    slowdowns = [1.0, *(round(math.exp(random.uniform(low, high)), 2) for _ in begins)]
    replicas: list[dict[str, Any]] = [
        {"device": device, "count": size, "tensor_parallel": parallel, "slowdown": slowdown}
        for size, slowdown in zip(sizes, slowdowns, strict=True)
    ]
    return scenario.replace(name=f"{scenario.name}~{draw}", model=model, replicas=replicas)
