"""What a router is: a function from views to replicas, for K clusters at once."""

from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fairlead.view.schema import View


@runtime_checkable
class Router(Protocol):
    """Chooses a replica for each waiting request. It sees the view and nothing else."""

    @property
    def name(self) -> str:
        """How results and reports call it."""
        ...

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """Forget everything: a run with `clusters` clusters of `replicas` replicas begins."""
        ...

    def route(self, view: View) -> npt.NDArray[np.int64]:
        """A replica for each cluster's request: (K,) integers in [0, R)."""
        ...
