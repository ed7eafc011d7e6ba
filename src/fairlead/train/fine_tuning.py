"""What differs unless it is set, where training goes on from a policy (`start_from`) or from nothing."""

from typing import Any

from fairlead.errors import FairleadError
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.packaged import policy_path

IMITATION = ("imitation", "teacher", "teachers")
"""Settings that say who is imitated, and how."""

_SCRATCH: dict[str, Any] = {
    "actor_learning_rate": {"kind": "linear", "start": 3e-3, "end": 1e-4},
    "entropy_coefficient": {"kind": "linear", "start": 0.001, "end": 0.0},
}


def filled(settings: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`settings` with `defaults` for what their sections leave out."""
    merged = dict(settings)
    for section, values in defaults.items():
        given = merged.get(section, {})
        if isinstance(given, dict):  # anything else is refused later, in words
            merged[section] = {**values, **given}
    return merged


def with_network(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the network of the policy that they start from, for what they leave out of theirs.

    Raises:
        FairleadError: if the policy cannot be used.
    """
    start = settings.get("start_from")
    if start is None:
        return settings
    policy = OnnxRouter(policy_path(str(start)))
    return filled({"network": {}, **settings}, {"network": policy.metadata.config.get("network", {})})


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with what fine-tuning takes for what they leave out; unchanged if it is none.

    Nobody is imitated unless that or a teacher is named. The teacher `counterfactual` has noisy prices: no
    soft labels (`imitation.soft_labels`).
    """
    if settings.get("start_from") is None:
        return settings
    if not any(key in settings for key in IMITATION):
        return {**settings, "imitation": None}
    if settings.get("teacher") == "counterfactual":
        return filled(settings, {"imitation": {"soft_labels": 0.0}})
    return settings


def from_scratch(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` without imitation, with a larger step and a little entropy for what they leave out.

    The critic's warm-up stays: without it some seeds let the replicas' loads drift apart for good.
    A critic that knows nothing takes a growing queue for free.

    Raises:
        FairleadError: if they name a teacher, imitation or a policy to start from.
    """
    for key in (*IMITATION, "start_from"):
        if settings.get(key) is not None:
            raise FairleadError(
                f"from scratch nobody is imitated and no policy is started from: leave out {key}, or "
                "--from-scratch"
            )
    defaults = dict(_SCRATCH)
    ppo = settings.get("ppo")
    if isinstance(ppo, dict) and ppo.get("entropy_target") is not None:
        del defaults["entropy_coefficient"]  # the weight follows the target
    return filled({**settings, "imitation": None}, {"ppo": defaults})
