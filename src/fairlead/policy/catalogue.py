"""Routers by name: what the command line and the tournament accept."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from fairlead.errors import FairleadError
from fairlead.policy.heuristics import DESCRIPTIONS, HEURISTICS, Heuristic, Lookahead
from fairlead.policy.packaged import is_packaged, packaged_names, policy_path
from fairlead.policy.router import Router
from fairlead.view.preference import DEFAULT_FAVOR, check_favor, weights_of
from fairlead.view.privilege import EVERYTHING, NOTHING, TRUE_LENGTHS

PRIVILEGED: Mapping[str, int] = {
    "lookahead:true-lengths": TRUE_LENGTHS,
    "lookahead:privileged": EVERYTHING,
}
"""Bounds that no router can reach: `lookahead` told what a router cannot know, by name."""

ALL_HEURISTICS: tuple[str, ...] = tuple(DESCRIPTIONS)
"""Every router that needs no training, `lookahead` included."""

Kind = Literal["heuristic", "lookahead", "learned"]


@dataclass(frozen=True)
class Entry:
    """A router that takes part in something, and how it is called there."""

    name: str
    kind: Kind
    detail: str
    """What identifies it: the rule, the weights of lookahead, or the policy file and its dial."""
    router: Router | Lookahead


def find_router(text: str, favor: float | None = None) -> Entry:
    """The router that `text` names: a heuristic, `lookahead` (or a bound), or a policy.

    A policy is a packaged one (`fairlead/generalist`) or the path of an exported one, ending in .onnx.

    `@0.8` at the end sets the dial of lookahead or of a policy (0 favors E2E, 1 favors TTFT) and becomes
    part of the name; without it the dial is `favor`.

    Raises:
        FairleadError: for an unknown name, a dial that is not in [0, 1] or that the router does not have,
            and for a policy file that is missing, corrupt or made for another schema.
    """
    base, at, dial = text.rpartition("@")
    if not at:
        base = text
    if base in HEURISTICS:
        if at:
            raise FairleadError(f"{base} has no dial: write {base} instead of {text}")
        return Entry(base, "heuristic", DESCRIPTIONS[base], Heuristic(base))
    chosen = _dial(text, dial) if at else check_favor(DEFAULT_FAVOR if favor is None else favor)
    if base == "lookahead" or base in PRIVILEGED:
        dialled = weights_of(chosen)
        router = Lookahead(dialled, PRIVILEGED.get(base, NOTHING))
        unreachable = ", told what no router can know: unreachable" if base in PRIVILEGED else ""
        return Entry(text, "lookahead", f"weights {dialled}{unreachable}", router)
    if not base.endswith(".onnx") and not is_packaged(base):
        known = ", ".join([*ALL_HEURISTICS, *PRIVILEGED, *packaged_names()])
        raise FairleadError(
            f"unknown router {base!r}: known are {known}, or the path of a policy ending in .onnx"
        )
    from fairlead.policy.artefact import OnnxRouter

    path = policy_path(base)
    name = path.stem + (f"@{dial}" if at else "")
    policy = OnnxRouter(path, name=name, favor=chosen)
    return Entry(name, "learned", f"{base}, favor {chosen:g}, {policy.engine}", policy)


def _dial(text: str, dial: str) -> float:
    try:
        return check_favor(float(dial))
    except ValueError:
        raise FairleadError(f"{dial!r} in {text!r} is not a number in [0, 1]") from None


def find_routers(texts: list[str], favor: float | None = None) -> list[Entry]:
    """All of `texts`, each under a name of its own.

    Raises:
        FairleadError: as `find_router`, and if two would have the same name in the results.
    """
    entries = [find_router(text, favor) for text in texts]
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise FairleadError(f"two routers are called {name}: rename a policy file, or give it once")
    return entries
