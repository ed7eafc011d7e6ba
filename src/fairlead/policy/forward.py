"""The actor's forward pass, compiled: the same operations as `fairlead.policy.layers`, without a memory.

One decision among 4 replicas takes 190,000 multiplications; a general runtime spends more time between its
operations than in them. Here the weights are one array that the functions read from front to back, each
handing the position on to the next. Replicas are rows.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit
from fairlead.policy.product import add_product

Floats = npt.NDArray[np.float32]

MASKED = -1e9
"""Score of a replica that must not be chosen, as in `fairlead.policy.layers`."""
EPSILON = np.float32(1e-5)
"""Of layer normalisation."""


KNOWN = frozenset(
    {
        "features",
        "projection",
        "encoder_layers",
        "layer_norm",
        "attention_layers",
        "attention_heads",
        "gru_layers",
        "available",
    }
)
"""What an architecture must name to be run here: one that names more is of a later version."""


ROWS = 256
"""Replicas, of however many clusters, that go through together: as much as stays in the cache."""


class Actor(NamedTuple):
    """An actor in the form that the compiled code reads."""

    weights: Floats
    """Of all layers, in the order of use: matrices (in, out), then what is added to each column."""
    seen: Floats
    """(F,) 1, or 0 for a feature that is not looked at."""
    projection: int
    hidden: int
    encoder_layers: int
    layer_norm: bool
    attention: int
    attention_layers: int
    attention_heads: int
    available: int
    """Index of the feature that says which replicas may be chosen; -1: all may."""


def pack(architecture: Mapping[str, Any], constants: Mapping[str, npt.NDArray[Any]]) -> Actor | None:
    """An `Actor` from the constants of an exported policy; None if this module cannot run it.

    Args:
        architecture: as `fairlead.policy.export.architecture` describes it.
        constants: by the name of the network's parameter; matrices (in, out).

    Raises:
        KeyError: if something is missing.
        ValueError: if sizes do not fit together.
    """
    if set(architecture) != KNOWN or architecture["gru_layers"]:
        return None
    used: list[npt.NDArray[Any]] = []

    def take(name: str, *shape: int) -> None:
        """Add a constant."""
        if constants[name].shape != shape:
            raise ValueError(f"{name} is {constants[name].shape}, not {shape}")
        used.append(constants[name])

    def linear(name: str, rows: int, columns: int | None = None, *, bias: bool = True) -> int:
        """Add a layer; returns how many columns it has, where that is not given."""
        columns = int(constants[f"{name}.weight"].shape[-1]) if columns is None else columns
        take(f"{name}.weight", rows, columns)
        if bias:
            take(f"{name}.bias", columns)
        else:
            used.append(np.zeros(columns))
        return columns

    def norm(name: str, width: int) -> None:
        take(f"{name}.weight", width)
        take(f"{name}.bias", width)

    features, available = architecture["features"], architecture["available"]
    if available is not None and not 0 <= available < features:
        raise ValueError(f"feature {available} of {features}")
    width, projection, encoder = features, 0, "trunk.encoder"
    if architecture["projection"]:
        norm(f"{encoder}.norm", features)
        width = projection = linear(f"{encoder}.project", features)
    hidden = int(constants[f"{encoder}.layers.0.weight"].shape[-1])
    for i in range(architecture["encoder_layers"]):
        width = linear(f"{encoder}.layers.{i}", width, hidden)
        if architecture["layer_norm"]:
            norm(f"{encoder}.norms.{i}", hidden)
    heads, attention = architecture["attention_heads"], 0
    for i in range(architecture["attention_layers"]):
        name = f"trunk.attention.{i}"
        attention = attention or int(constants[f"{name}.mix.weight"].shape[0])
        linear(f"{name}.query_key_value", hidden, 3 * attention, bias=False)
        linear(f"{name}.mix", attention, hidden, bias=False)
    if attention % heads:
        raise ValueError(f"{heads} heads, {attention} wide together")
    linear("score_head.layer_1", hidden, hidden // 2)
    linear("score_head.layer_2", hidden // 2, 1)
    return Actor(
        weights=np.concatenate([each.ravel() for each in used], dtype=np.float32),
        seen=np.array(constants.get("seen", np.ones(features)), np.float32),
        projection=projection,
        hidden=hidden,
        encoder_layers=architecture["encoder_layers"],
        layer_norm=architecture["layer_norm"],
        attention=attention,
        attention_layers=architecture["attention_layers"],
        attention_heads=heads,
        available=-1 if available is None else available,
    )


def logits(actor: Actor, features: Floats) -> Floats:
    """Scores (K, R) of the features (K, R, F)."""
    scores = np.empty(features.shape[:2], np.float32)
    _score_all(actor, np.ascontiguousarray(features, np.float32), scores)
    return scores


@njit()
def _score_all(actor: Actor, features: Floats, scores: Floats) -> None:
    clusters, replicas, size = features.shape
    step = max(ROWS // replicas, 1)
    for c in range(0, clusters, step):
        some = features[c : c + step]
        _score(actor, some.reshape(len(some) * replicas, size), scores[c : c + step])


@njit()
def best_of(actor: Actor, features: Floats) -> int:
    """The replica with the highest score in the one cluster of `features` (1, R, F)."""
    scores = np.empty((1, features.shape[1]), np.float32)
    _score(actor, features[0], scores)
    best = 0
    for r in range(1, scores.shape[1]):
        if scores[0, r] > scores[0, best]:
            best = r
    return best


class Parts(NamedTuple):
    """An actor as arrays: compiled code takes them over in a quarter of the time that an `Actor` needs."""

    weights: Floats
    seen: Floats
    numbers: npt.NDArray[np.int64]
    """(8,) the other fields of `Actor`, in their order."""


def parts(actor: Actor) -> Parts:
    """The same actor as arrays."""
    return Parts(actor.weights, actor.seen, np.array(actor[2:], np.int64))


@njit()
def best_by_parts(weights: Floats, seen: Floats, numbers: npt.NDArray[np.int64], features: Floats) -> int:
    """What `best_of` says, for an actor's `Parts`."""
    n = numbers
    actor = Actor(weights, seen, n[0], n[1], n[2], n[3] != 0, n[4], n[5], n[6], n[7])
    return best_of(actor, features)


@njit()
def _score(actor: Actor, features: Floats, scores: Floats) -> None:
    """The scores (K, R) of K clusters from the features (K * R, F) of all their replicas."""
    clusters, replicas = scores.shape
    absent = np.zeros((clusters, replicas), np.bool_)
    if actor.available >= 0:
        for c in range(clusters):
            for r in range(replicas):
                absent[c, r] = features[c * replicas + r, actor.available] <= 0.5
    x, at = _encode(actor, features * actor.seen)
    for _ in range(actor.attention_layers):
        at = _attend(actor, x, absent, at)
    x, at = _linear(x, actor.weights, at, actor.hidden // 2)
    _relu(x)
    x, at = _linear(x, actor.weights, at, 1)
    for c in range(clusters):
        for r in range(replicas):
            scores[c, r] = MASKED if absent[c, r] else x[c * replicas + r, 0]


@njit()
def _encode(actor: Actor, x: Floats) -> tuple[Floats, int]:
    """Each replica by itself: (R, F) -> (R, hidden); the layers' weights are the first."""
    at = 0
    if actor.projection:
        at = _normalise(x, actor.weights, at)
        x, at = _linear(x, actor.weights, at, actor.projection)
        _gelu(x)
    for _ in range(actor.encoder_layers):
        x, at = _linear(x, actor.weights, at, actor.hidden)
        if actor.layer_norm:
            at = _normalise(x, actor.weights, at)
        _relu(x)
    return x, at


@njit()
def _attend(actor: Actor, x: Floats, absent: npt.NDArray[np.bool_], at: int) -> int:
    """Add to each row of `x` (K * R, hidden) what it finds at those of its cluster that are not `absent`."""
    clusters, replicas = absent.shape
    width, heads = actor.attention, actor.attention_heads
    size = width // heads
    parts, at = _linear(x, actor.weights, at, 3 * width)
    found = np.empty((len(x), width), np.float32)
    query, key = np.empty((replicas, size), np.float32), np.empty((size, replicas), np.float32)
    value, seen = np.empty((replicas, size), np.float32), np.empty((replicas, size), np.float32)
    looks = np.empty((replicas, replicas), np.float32)
    scale = np.float32(1 / math.sqrt(size))
    for c in range(clusters):
        for head in range(heads):
            for r in range(replicas):
                part = parts[c * replicas + r, head * size :]
                for i in range(size):
                    query[r, i] = scale * part[i]
                    key[i, r] = part[width + i]
                    value[r, i] = part[2 * width + i]
            looks.fill(0.0)
            add_product(query, key, looks)
            _softmax(looks, absent[c])
            seen.fill(0.0)
            add_product(looks, value, seen)
            for r in range(replicas):
                for i in range(size):
                    found[c * replicas + r, head * size + i] = seen[r, i]
    mixed, at = _linear(found, actor.weights, at, actor.hidden)
    for r in range(len(x)):
        to, of = x[r], mixed[r]
        for i in range(len(to)):
            to[i] += of[i]
    return at


@njit()
def _linear(x: Floats, weights: Floats, at: int, columns: int) -> tuple[Floats, int]:
    """(rows, in) -> (rows, columns), and where the next layer's weights begin."""
    shift = at + x.shape[1] * columns
    end = shift + columns
    out = np.empty((len(x), columns), np.float32)
    for r in range(len(x)):
        to, of = out[r], weights[shift:end]
        for o in range(columns):
            to[o] = of[o]
    add_product(x, weights[at:shift].reshape(x.shape[1], columns), out)
    return out, end


@njit()
def _softmax(scores: Floats, absent: npt.NDArray[np.bool_]) -> None:
    """Each row becomes shares, those of columns that are `absent` zero (unless all are)."""
    for r in range(len(scores)):
        row = scores[r]
        most = np.float32(MASKED)
        for i in range(len(row)):
            if absent[i]:
                row[i] = MASKED
            most = max(most, row[i])
        total = np.float32(0.0)
        for i in range(len(row)):
            row[i] = math.exp(row[i] - most)
            total += row[i]
        for i in range(len(row)):
            row[i] /= total


@njit()
def _normalise(x: Floats, weights: Floats, at: int) -> int:
    """Layer normalisation of each row, in place; returns where the next layer's weights begin."""
    width: int = x.shape[1]
    for r in range(len(x)):
        row = x[r]
        mean = row.sum() / np.float32(width)
        variance = np.float32(0.0)
        for i in range(width):
            variance += (row[i] - mean) * (row[i] - mean)
        scale = np.float32(1.0) / math.sqrt(variance / np.float32(width) + EPSILON)
        for i in range(width):
            row[i] = (row[i] - mean) * scale * weights[at + i] + weights[at + width + i]
    return at + 2 * width


@njit()
def _relu(x: Floats) -> None:
    for r in range(len(x)):
        row = x[r]
        for i in range(len(row)):
            row[i] = max(row[i], np.float32(0.0))


@njit()
def _gelu(x: Floats) -> None:
    for r in range(len(x)):
        for i in range(x.shape[1]):
            x[r, i] *= np.float32(0.5) * (np.float32(1.0) + math.erf(x[r, i] * np.float32(math.sqrt(0.5))))
