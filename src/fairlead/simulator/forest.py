"""Regression forests as Vidur trains them: trees grown to the end on bootstrapped rows, averaged.

With one feature the average over all bootstraps is a formula (`expected_forest`); with two features trees
are grown (Breiman, "Random forests", Machine Learning 45, 2001), compiled and with fixed seeds. Both restate
what scikit-learn's `RandomForestRegressor` does with `min_samples_split=2`: splits half-way between
neighbouring values, chosen by the least squared error, leaves with their rows' mean.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from fairlead.compiled import njit

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

TREES = 100
"""Trees of a grown forest; Vidur takes 250 to 750."""
_REACH = 12
"""Neighbours on one side that a prediction can come from; the chance of more is below exp(-12)."""


def expected_forest(x: FloatArray, y: FloatArray, at: FloatArray) -> FloatArray:
    """The forest of infinitely many trees on one feature, (len(at),).

    A tree knows a value of x unless none of its k rows was drawn, which happens with probability exp(-k).
    It predicts the mean at the nearer one of the two known neighbours.

    Args:
        x: (N,) the feature.
        y: (N,) what to predict; rows with equal x are averaged.
        at: (Q,) where to predict; beyond the ends the forest is constant.
    """
    values, inverse = np.unique(x, return_inverse=True)
    rows = np.bincount(inverse)
    mean = np.bincount(inverse, y) / rows
    missing = np.exp(-rows.astype(np.float64))
    above = np.searchsorted(values, at)  # the first value that is not below
    left, left_weight = _neighbours(above - 1, -1, missing)
    right, right_weight = _neighbours(above, 1, missing)
    half = (values[left][:, :, None] + values[right][:, None, :]) / 2
    nearer = np.where(at[:, None, None] <= half, mean[left][:, :, None], mean[right][:, None, :])
    both = (nearer * left_weight[:, :, None] * right_weight[:, None, :]).sum((1, 2))
    # Where nothing is known on one side, as beyond the ends, the other side counts.
    no_left, no_right = 1 - left_weight.sum(1), 1 - right_weight.sum(1)
    one = no_right * (mean[left] * left_weight).sum(1) + no_left * (mean[right] * right_weight).sum(1)
    return np.asarray((both + one) / (1 - no_left * no_right), np.float64)


def _neighbours(start: IntArray, step: int, missing: FloatArray) -> tuple[IntArray, FloatArray]:
    """Indices (Q, _REACH) of the neighbours on one side, and the chance that each is the nearest known."""
    at = start[:, None] + step * np.arange(_REACH)
    inside = (at >= 0) & (at < len(missing))
    at = np.clip(at, 0, len(missing) - 1)
    absent = np.where(inside, missing[at], 1.0)
    reached = np.cumprod(np.concatenate([np.ones((len(at), 1)), absent[:, :-1]], 1), 1)
    return at, np.where(inside, reached * (1.0 - absent), 0.0)


def grown_forest(x: FloatArray, y: FloatArray, at: FloatArray, trees: int = TREES) -> FloatArray:
    """Predictions (Q,) of a forest on two features.

    Args:
        x: (N, 2) the features.
        y: (N,) what to predict.
        at: (Q, 2) where to predict.
        trees: how many to average.
    """
    total = np.zeros(len(at))
    draw = np.random.default_rng(0)
    for _ in range(trees):
        rows = draw.integers(0, len(y), len(y))
        drawn = np.ascontiguousarray(x[rows])
        _add_tree(drawn, y[rows], np.argsort(drawn, axis=0, kind="stable").T.copy(), at, total)
    return total / trees


@njit()
def _best_split(x: Any, y: Any, order: Any, first: int, end: int, feature: int) -> tuple[float, float]:
    """(gain, threshold) of the best split of the rows order[feature, first:end]; gain -1 if there is none.

    The squared error falls by the most where the sum of (sum of y)^2 / rows over both sides is largest.
    """
    total = 0.0
    for i in range(first, end):
        total += y[order[feature, i]]
    best, threshold, so_far = -1.0, 0.0, 0.0
    for i in range(first, end - 1):
        so_far += y[order[feature, i]]
        here, after = x[order[feature, i], feature], x[order[feature, i + 1], feature]
        if here < after:
            rest = total - so_far
            gain = so_far * so_far / (i + 1 - first) + rest * rest / (end - 1 - i)
            if gain > best:
                best, threshold = gain, 0.5 * (here + after)
    return best, threshold


@njit()
def _add_tree(x: Any, y: Any, order: Any, at: Any, total: Any) -> None:
    """Grow one tree on all rows and add its predictions to `total`.

    `order` (2, N) holds the rows sorted by either feature; a node owns the same range in both, and a split
    divides the ranges without disturbing their order.
    """
    count = len(y)
    feature = np.full(2 * count, -1)
    threshold = np.zeros(2 * count)
    value = np.zeros(2 * count)
    child = np.zeros(2 * count, np.int64)  # of the left one; the right one follows
    begin = np.zeros(2 * count, np.int64)
    end = np.zeros(2 * count, np.int64)
    spare = np.zeros(count, np.int64)
    end[0] = count
    nodes = 1
    node = 0
    while node < nodes:
        first, last = begin[node], end[node]
        least, most, mean = np.inf, -np.inf, 0.0
        for i in range(first, last):
            here = y[order[0, i]]
            least, most, mean = min(least, here), max(most, here), mean + here / (last - first)
        value[node] = mean
        if most > least:
            gain_0, at_0 = _best_split(x, y, order, first, last, 0)
            gain_1, at_1 = _best_split(x, y, order, first, last, 1)
            if gain_0 >= 0.0 or gain_1 >= 0.0:
                tied = abs(gain_0 - gain_1) <= 1e-12 * abs(gain_0)
                # Of two rows, either feature tells them apart as well: such ties are many.
                by = (node + order[0, first]) % 2 if tied else (0 if gain_0 > gain_1 else 1)
                cut = at_0 if by == 0 else at_1
                middle = first
                for each in range(2):
                    low, high = first, 0
                    for i in range(first, last):
                        row = order[each, i]
                        if x[row, by] <= cut:
                            order[each, low] = row
                            low += 1
                        else:
                            spare[high] = row
                            high += 1
                    for i in range(high):
                        order[each, low + i] = spare[i]
                    middle = low
                feature[node], threshold[node], child[node] = by, cut, nodes
                begin[nodes], end[nodes] = first, middle
                begin[nodes + 1], end[nodes + 1] = middle, last
                nodes += 2
        node += 1
    for q in range(len(at)):
        node = 0
        while feature[node] >= 0:
            node = child[node] + (0 if at[q, feature[node]] <= threshold[node] else 1)
        total[q] += value[node]
