"""The exported policy: an ONNX file that carries the schema it was trained on, and its router.

Routing needs `onnxruntime`, never torch. Networks without a memory are run by `fairlead.policy.forward`, with
the weights of the same file, in a fraction of ONNX Runtime's time for a single decision.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnxruntime

from fairlead import rng
from fairlead.errors import FairleadError
from fairlead.policy import forward
from fairlead.policy.constants import read_constants
from fairlead.view.features import FEATURES, NUM_FEATURES, features_batch
from fairlead.view.features import features as write_features
from fairlead.view.preference import DEFAULT_FAVOR, check_favor
from fairlead.view.schema import View, schema_hash

TOLERANCE = 1e-3
"""Scores of the two engines may differ by so much of the largest: sums are added up in another order."""


@dataclass(frozen=True)
class Metadata:
    """What a policy file says about itself."""

    schema_hash: str
    """Hash of the view's columns and the features; must be that of the running program."""
    features: tuple[str, ...]
    """Names of the last axis of the input."""
    fairlead_version: str
    """The version that exported it."""
    architecture: dict[str, Any] | None
    """Sizes of the network, for `fairlead.policy.forward`; older files do not name them."""
    config: dict[str, Any]
    """The training configuration."""
    training: dict[str, Any]
    """Summary of the training run: iterations, decisions, objective, seed, ..."""


def actor_weights(path: Path) -> dict[str, npt.NDArray[np.float32]]:
    """The actor's weights in an exported policy, by their names in the network: for going on from there.

    Raises:
        FairleadError: if there is no such policy.
    """
    if not path.is_file():
        raise FairleadError(f"no policy file at {path} to start from")
    return {
        name: np.array(value.T if value.ndim == 2 else value, np.float32, order="C")
        for name, value in read_constants(path.read_bytes()).items()
        if name.startswith(("trunk.", "score_head."))
    }


def _read_metadata(session: Any, path: Path) -> Metadata:
    properties = session.get_modelmeta().custom_metadata_map
    try:
        return Metadata(
            properties["schema_hash"],
            tuple(json.loads(properties["features"])),
            properties["fairlead_version"],
            json.loads(properties.get("architecture", "null")),
            json.loads(properties["config"]),
            json.loads(properties["training"]),
        )
    except (KeyError, ValueError) as error:
        raise FairleadError(
            f"{path} is an ONNX file but not a policy exported by fairlead (metadata: {error})"
        ) from error


class OnnxRouter:
    """Routes by the highest score of an exported policy."""

    def __init__(
        self,
        path: Path | str,
        *,
        name: str | None = None,
        favor: float = DEFAULT_FAVOR,
        features: tuple[str, ...] = FEATURES,
        threads: int = 1,
    ) -> None:
        """Load and check the file.

        Args:
            path: of the file.
            name: for results and reports; the file's stem if not given.
            favor: point on the dial between E2E (0) and TTFT (1).
            features: the features that the caller will compute.
            threads: for one inference; 1 is fastest for a few decisions at a time.

        Raises:
            FairleadError: if the file is missing, corrupt, no policy, or made for another schema;
                for a favor outside [0, 1].
        """
        path = Path(path)
        if not path.is_file():
            raise FairleadError(f"no policy file at {path}; train one with `fairlead train`")
        content = path.read_bytes()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised, and said once
        try:
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions share no other base class
            raise FairleadError(
                f"{path} is not a readable ONNX file (corrupt or cut short); export it again"
            ) from error
        self.metadata = _read_metadata(self._session, path)
        self.name = name or path.stem
        self._state_size = next((i.shape[-1] for i in self._session.get_inputs() if i.name == "state"), 0)
        self._state: npt.NDArray[np.float32] | None = None
        self.favor = check_favor(favor)
        expected = schema_hash(features)
        if self.metadata.schema_hash != expected:
            raise FairleadError(
                f"{path} was trained on another view schema or dial ({self.metadata.schema_hash}, fairlead "
                f"{self.metadata.fairlead_version}) than this program's ({expected}); train it again"
            )
        self._actor = self._compiled(content, len(features), path)
        self._parts = None if self._actor is None else forward.parts(self._actor)
        self._seen: dict[int, npt.NDArray[np.float32]] = {}
        """Room for the features of one cluster, by its replicas."""
        self._view: View | None = None
        """The last view of one cluster: a gateway writes it anew for each request."""
        self._arrays: Any = None
        """What its route works on: the parts of that view, and of the features."""

    def _compiled(self, content: bytes, features: int, path: Path) -> forward.Actor | None:
        """What the compiled code needs, once it is sure that its scores are the graph's.

        Raises:
            FairleadError: if they are not.
        """
        try:
            actor = forward.pack(self.metadata.architecture or {}, read_constants(content))
        except (KeyError, TypeError, ValueError) as error:
            raise FairleadError(
                f"the network in {path} is not what its metadata says (`architecture`: {error}); "
                "export it again"
            ) from error
        if actor is None:
            return None
        # This also compiles it, before the first decision.
        drawn = rng.stream(0, "policy", "compare").normal(0.5, 1.0, (8, 5, features)).astype(np.float32)
        graph, compiled = self._run({"features": drawn})[0], forward.logits(actor, drawn)
        if not np.allclose(compiled, graph, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            raise FairleadError(
                f"the network in {path} is not what its metadata says (`architecture`): its graph gives "
                "other scores; export it again"
            )
        return actor

    @property
    def engine(self) -> Literal["compiled", "onnxruntime"]:
        """What computes the scores: compiled code where the architecture allows it."""
        return "onnxruntime" if self._actor is None else "compiled"

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """Forget earlier decisions, where the policy remembers any."""
        self._state = None

    @property
    def has_memory(self) -> bool:
        """Whether decisions depend on earlier ones; then `reset` begins a run."""
        return bool(self._state_size)

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(K, R, F) -> (K, R); with a memory, of the next decision of K clusters since the last `reset`."""
        if self._actor is not None:
            return forward.logits(self._actor, features)
        if not self._state_size:
            return self._run({"features": features})[0]
        if self._state is None or self._state.shape[:2] != features.shape[:2]:
            self._state = np.zeros((*features.shape[:2], self._state_size), np.float32)
        logits, self._state = self._run({"features": features, "state": self._state})
        return logits

    def _run(self, inputs: dict[str, npt.NDArray[np.float32]]) -> list[npt.NDArray[np.float32]]:
        outputs: list[npt.NDArray[np.float32]] = self._session.run(None, inputs)
        return outputs

    def route(self, view: View) -> npt.NDArray[np.int64]:
        """The replica with the highest score for each cluster's request: (K,)."""
        if view is not self._view:
            clusters, replicas = view.replicas.shape[:2]
            if clusters != 1:
                actions: npt.NDArray[np.int64] = self.logits(features_batch(view, self.favor)).argmax(-1)
                return actions
            # One cluster, as in a gateway, where making arrays would take longer than filling them.
            seen = self._seen.get(replicas)
            if seen is None:
                seen = self._seen[replicas] = np.empty((1, replicas, NUM_FEATURES), np.float32)
            self._view, self._arrays = view, (view.replicas[0], view.request[0], seen, seen[0])
        columns, request, seen, features = self._arrays
        write_features(columns, request, self.favor, features)
        if self._parts is not None:
            return np.array((forward.best_by_parts(*self._parts, seen),))
        actions = self.logits(seen).argmax(-1)
        return actions
