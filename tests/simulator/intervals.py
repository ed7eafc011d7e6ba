"""Confidence intervals for laws that hold on average."""

import numpy as np
import numpy.typing as npt
from scipy import stats


def interval(values: npt.ArrayLike, miss: float = 1e-4) -> tuple[float, float]:
    """Of the mean of independent values, by Student's t: a true law is missed with probability `miss`."""
    found = np.asarray(values, np.float64)
    error = found.std(ddof=1) / np.sqrt(len(found))
    half = float(stats.t.ppf(1 - miss / 2, len(found) - 1)) * error
    return float(found.mean() - half), float(found.mean() + half)
