"""The exported policy: an ONNX file that carries the schema it was trained on, and its router.

Exporting needs `onnx` (the `train` extra) and reads the network's weights by name; routing needs
`onnxruntime` alone, never torch. The graph is written node by node: a dozen nodes are easier to trust than a
tracer, and the batch and the number of replicas stay free.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from fairlead import __version__
from fairlead.errors import FairleadError
from fairlead.view.features import FEATURES, features_batch
from fairlead.view.preference import DEFAULT_FAVOR, check_favor
from fairlead.view.schema import View, schema_hash

if TYPE_CHECKING:
    import onnx

    from fairlead.policy.network import RouterNetwork

OPSET = 18
IR_VERSION = 9


@dataclass(frozen=True)
class Metadata:
    """What a policy file says about itself."""

    schema_hash: str
    """Hash of the view's columns and the features; must be that of the running program."""
    features: tuple[str, ...]
    """Names of the last axis of the input."""
    fairlead_version: str
    """The version that exported it."""
    config: dict[str, Any]
    """The training configuration."""
    training: dict[str, Any]
    """Summary of the training run: iterations, decisions, objective, seed, ..."""


class _Graph:
    """A list of nodes under construction; each method adds nodes and returns the name of the result."""

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        import onnx

        name = output or f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        import onnx

        self.constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def linear(self, x: str, layer: str, rows: slice = slice(None), scale: float = 1.0) -> str:
        """`scale` times the outputs `rows` of a linear layer."""
        name = f"{layer}.{len(self.nodes)}"
        weight = self.weights[f"{layer}.weight"][rows].T * np.float32(scale)
        x = self.node("MatMul", x, self.constant(f"{name}.weight", weight))
        if f"{layer}.bias" in self.weights:
            x = self.node("Add", x, self.constant(f"{name}.bias", self.weights[f"{layer}.bias"][rows]))
        return x

    def relu(self, x: str) -> str:
        return self.node("Relu", x)


def _actor(graph: _Graph) -> None:
    """The same operations as `RouterNetwork.logits`."""
    embedding = graph.relu(graph.linear("features", "trunk.encoder_1"))
    embedding = graph.relu(graph.linear(embedding, "trunk.encoder_2"))
    width = graph.weights["trunk.query_key_value.weight"].shape[0] // 3
    layer = "trunk.query_key_value"
    query = graph.linear(embedding, layer, slice(0, width), scale=width**-0.5)
    key = graph.linear(embedding, layer, slice(width, 2 * width))
    value = graph.linear(embedding, layer, slice(2 * width, 3 * width))
    scores = graph.node("MatMul", query, graph.node("Transpose", key, perm=[0, 2, 1]))
    attended = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    embedding = graph.node("Add", embedding, graph.linear(attended, "trunk.mix"))
    hidden = graph.relu(graph.linear(embedding, "score_head.layer_1"))
    last_axis = graph.constant("last_axis", np.array([-1], np.int64))
    graph.node("Squeeze", graph.linear(hidden, "score_head.layer_2"), last_axis, output="logits")


def export_onnx(
    network: "RouterNetwork",
    path: Path,
    *,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    features: tuple[str, ...] = FEATURES,
) -> None:
    """Write the actor to `path`, complete or not at all.

    Input `features` (clusters, replicas, F) float32, output `logits` (clusters, replicas) float32.

    Args:
        network: whose actor to export.
        path: of the file; an existing one is replaced.
        config: the training configuration, as plain data.
        training: a summary of the training run, as plain data.
        features: names of the F features; with the view's columns they make the schema hash.

    Raises:
        FairleadError: if `onnx` is not installed, or the network expects other features.
    """
    try:
        import onnx
    except ImportError as error:
        raise FairleadError(
            "exporting a policy needs onnx; install it: pip install 'fairlead[train]'"
        ) from error
    if network.features != len(features):
        raise FairleadError(f"the network reads {network.features} features, the schema has {len(features)}")
    graph = _Graph({name: tensor.detach().numpy() for name, tensor in network.state_dict().items()})
    _actor(graph)
    tensor = onnx.helper.make_tensor_value_info
    shape = ["clusters", "replicas"]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "fairlead-policy",
            [tensor("features", onnx.TensorProto.FLOAT, [*shape, len(features)])],
            [tensor("logits", onnx.TensorProto.FLOAT, shape)],
            graph.constants,
        ),
        producer_name="fairlead",
        producer_version=__version__,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.helper.set_model_props(
        model,
        {
            "schema_hash": schema_hash(features),
            "features": json.dumps(features),
            "fairlead_version": __version__,
            "config": json.dumps(config, sort_keys=True),
            "training": json.dumps(training, sort_keys=True),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(model.SerializeToString())
    os.replace(partial, path)


def _read_metadata(session: Any, path: Path) -> Metadata:
    properties = session.get_modelmeta().custom_metadata_map
    try:
        return Metadata(
            properties["schema_hash"],
            tuple(json.loads(properties["features"])),
            properties["fairlead_version"],
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
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what goes wrong is raised, and said once
        try:
            self._session = onnxruntime.InferenceSession(
                path.read_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's exceptions share no other base class
            raise FairleadError(
                f"{path} is not a readable ONNX file (corrupt or cut short); export it again"
            ) from error
        self.metadata = _read_metadata(self._session, path)
        self.name = name or path.stem
        self.favor = check_favor(favor)
        expected = schema_hash(features)
        if self.metadata.schema_hash != expected:
            raise FairleadError(
                f"{path} was trained on another view schema ({self.metadata.schema_hash}, fairlead "
                f"{self.metadata.fairlead_version}) than this program's ({expected}); train it again"
            )

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """Nothing to forget: a policy is a function of the view."""

    def logits(self, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """(K, R, F) -> (K, R)."""
        logits: npt.NDArray[np.float32] = self._session.run(None, {"features": features})[0]
        return logits

    def route(self, view: View) -> npt.NDArray[np.int64]:
        """The replica with the highest score for each cluster's request: (K,)."""
        actions: npt.NDArray[np.int64] = self.logits(features_batch(view, self.favor)).argmax(-1)
        return actions
