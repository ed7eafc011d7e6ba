"""The `sojourn` reward: minus the weighted waiting between two decisions.

Between two arrivals the cluster pays `w_ttft` for each second that a request spends without its first
token and `w_e2e` for each second that it spends in the system. By Little's law the sum over a run is
exactly w_ttft * (total TTFT) + w_e2e * (total E2E): dense, unbiased and unsaturated.
"""

import numpy as np
import numpy.typing as npt

from fairlead.simulator.cluster import Clusters, waiting_areas
from fairlead.view.preference import weights


class Sojourn:
    """Reward of K clusters, each with its own point on the dial."""

    def __init__(self, favor: npt.NDArray[np.float64]) -> None:
        """`favor` (K,) in [0, 1]."""
        # (K, 2): w_ttft and w_e2e
        self.weights = np.array([weights(float(f)) for f in favor])
        self._areas = np.empty((len(favor), 2))

    def since_last_decision(self, clusters: Clusters) -> npt.NDArray[np.float64]:
        """(K,) rewards in weighted request-seconds, for the time up to the decision at hand."""
        waiting_areas(clusters.state, clusters.state.clusters["now"], self._areas)
        return -np.einsum("kj,kj->k", self.weights, self._areas)
