"""Training that goes on from a policy (`start_from`): what differs unless it is set."""

from typing import Any

from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.packaged import policy_path

_IMITATION = ("imitation", "teacher", "teachers")


def filled(settings: dict[str, Any], defaults: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`settings` with `defaults` for what their sections leave out."""
    merged = dict(settings)
    for section, values in defaults.items():
        given = merged.get(section, {})
        if isinstance(given, dict):  # anything else is refused later, in words
            merged[section] = {**values, **given}
    return merged


def with_network(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with the network of the policy that they start from, unless they describe one.

    Raises:
        FairleadError: if the policy cannot be used.
    """
    start = settings.get("start_from")
    if start is None:
        return settings
    policy = OnnxRouter(policy_path(str(start)))
    return {"network": policy.metadata.config.get("network", {}), **settings}


def with_defaults(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with what fine-tuning takes for what they leave out; unchanged if it is none.

    Nobody is imitated unless that or a teacher is named. The teacher `counterfactual` has noisy prices: no
    soft labels (`imitation.soft_labels`).
    """
    if settings.get("start_from") is None:
        return settings
    if not any(key in settings for key in _IMITATION):
        return {**settings, "imitation": None}
    if settings.get("teacher") == "counterfactual":
        return filled(settings, {"imitation": {"soft_labels": 0.0}})
    return settings
