"""Settings of training on live servers, documented in place."""

from typing import Annotated, Any

from pydantic import Field

from fairlead.section import Section
from fairlead.train.fine_tuning import filled

Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]


class LiveConfig(Section):
    """Training on live servers (`--backend`): how much they are asked for, and the comparison at the end."""

    requests: Count = 4000
    """All requests that the servers are sent: for training, and for the comparison."""
    comparison_requests: Annotated[int, Field(ge=0)] = 100
    """Requests in each run of the comparison of the trained policy with the one that it began as; 0: none."""
    comparison_seeds: Annotated[int, Field(ge=2)] = 5
    """Sets of arrivals of the comparison, each served by every policy in it."""
    request_s: Positive = 300.0
    """A request without a complete answer after this has failed, which ends training."""
    drain_s: Positive = 120.0
    """For the servers to become idle before each episode and each run."""


DEFAULTS: dict[str, dict[str, Any]] = {
    "environment": {"favor": [0.5, 0.5]},
    "ppo": {
        "iterations": 1000,
        "critic_warmup_iterations": 3,
        "rollout_steps": 256,
        "reset_every": 1,
        "epochs": 4,
        "minibatch": 64,
        "actor_learning_rate": 1e-4,
        "critic_learning_rate": 1e-3,
        "reference_kl": 0.1,
    },
}
"""What differs from training in simulation unless it is set: one cluster in real time gives few decisions, so
each is used more often and the policy stays near the one that it began as. Iterations end with the requests.
"""


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` of a training on live servers, with `DEFAULTS` for what they leave out."""
    merged = filled(settings, DEFAULTS)
    network = merged.get("network")
    if isinstance(network, dict) and (network.get("gru_layers") or network.get("critic_gru_layers")):
        merged["ppo"].pop("reference_kl", None)  # it does not work with a memory
    live = merged.get("live")
    merged["live"] = {} if live is None else live
    return merged
