"""Where the tail of the TTFTs of an episode is taken to begin, for rewards.

Beyond any q the mean of (TTFT - q)+ / a + q is no less than the mean of the worst share a of all TTFTs, and
equal to it where q is their quantile (Rockafellar and Uryasev 2000, Optimization of Conditional
Value-at-Risk). So q should be the quantile of the whole episode, and must not follow the policy that is paid
by it: where q is that of its own TTFTs so far, to let a few starve moves q and makes it cheap, and where
queues grow all that waits is beyond what was seen before, whatever is done (docs/experiments.md has both).

So heuristics serve the arrivals first, and the tail begins where the best of them has it begin in the end:
policies that are worth training are close to that.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fairlead.env.run import run
from fairlead.policy.heuristics import Heuristic
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import Fleet
from fairlead.view.tail import TAIL_SHARE
from fairlead.workload.requests import Requests

Floats = npt.NDArray[np.float64]

YARDSTICKS = ("least_work", "sticky_until_saturated", "kv_bulkhead")
"""Each is good at what another is not: unequal replicas, prefixes that are shared, memory that runs out."""


class Tails:
    """Finds where tails begin, in clusters of its own."""

    def __init__(self, fleets: Sequence[Fleet]) -> None:
        """For episodes in clusters of these `fleets`."""
        self._fleets = fleets
        self._clusters: Clusters | None = None

    def begin(self, requests: Sequence[Requests], seed: int) -> Floats:
        """(len(fleets),) seconds, for an episode with these requests in each cluster."""
        under = np.array([self._under(Heuristic(name), requests, seed) for name in YARDSTICKS])
        best: Floats = under.min(0)
        return best

    def _under(self, router: Heuristic, requests: Sequence[Requests], seed: int) -> Floats:
        """The quantile under a router, after all has been served."""
        if self._clusters is None:
            self._clusters = Clusters(self._fleets, requests, seed=seed)
        else:
            self._clusters.load(requests, seed)
        run(self._clusters, router, seed=seed)
        rows = self._clusters.state.requests
        ttft = rows["first_token"] - rows["arrival"]
        begins: Floats = np.quantile(ttft, 1.0 - TAIL_SHARE, axis=1, method="higher")
        return begins
