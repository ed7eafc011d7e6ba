"""An actor as an ONNX file that carries the schema it was trained on.

Exporting needs `onnx` (the `train` extra) and reads the network's weights by name. The graph is written node
by node: a dozen nodes are easier to trust than a tracer, and the batch and the number of replicas stay free.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fairlead import __version__
from fairlead.errors import FairleadError
from fairlead.files import atomic
from fairlead.policy.forward import MASKED
from fairlead.view.features import FEATURES
from fairlead.view.schema import schema_hash

if TYPE_CHECKING:
    import onnx

    from fairlead.policy.layers import Architecture
    from fairlead.policy.network import RouterNetwork

OPSET = 18
IR_VERSION = 9


class _Graph:
    """A list of nodes under construction; each method adds nodes and returns the name of the result.

    A weight becomes one constant under its name in the network, matrices transposed, so that
    `artefact.actor_weights` can read them back.
    """

    def __init__(self, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def node(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        return self.split(
            kind, *inputs, outputs=(output or f"{kind.lower()}_{len(self.nodes)}",), **attributes
        )[0]

    def split(self, kind: str, *inputs: str, outputs: Sequence[str], **attributes: Any) -> tuple[str, ...]:
        """A node with several results."""
        import onnx

        self.nodes.append(
            onnx.helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes)
        )
        return tuple(outputs)

    def constant(self, name: str, value: npt.NDArray[Any]) -> str:
        import onnx

        self.constants[name] = onnx.numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def number(self, value: float) -> str:
        """A float32 scalar."""
        return self.constant(f"number {value:g}", np.array(value, np.float32))

    def integers(self, *values: int) -> str:
        """A list of int64."""
        return self.constant(f"integers {values}", np.array(values, np.int64))

    def linear(self, x: str, layer: str) -> str:
        weight = f"{layer}.weight"
        x = self.node("MatMul", x, self.constant(weight, self.weights[weight].T))
        bias = f"{layer}.bias"
        return self.node("Add", x, self.constant(bias, self.weights[bias])) if bias in self.weights else x

    def layer_norm(self, x: str, layer: str) -> str:
        scale, shift = (
            self.constant(f"{layer}.{part}", self.weights[f"{layer}.{part}"]) for part in ("weight", "bias")
        )
        return self.node("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)

    def gelu(self, x: str) -> str:
        half = self.node("Mul", x, self.number(0.5))
        erf = self.node("Erf", self.node("Mul", x, self.number(2**-0.5)))
        return self.node("Mul", half, self.node("Add", erf, self.number(1.0)))

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def parts(self, x: str, sizes: Sequence[int]) -> tuple[str, ...]:
        """Consecutive pieces of the last axis."""
        names = [f"part{i}_{len(self.nodes)}" for i in range(len(sizes))]
        return self.split("Split", x, self.integers(*sizes), outputs=names, axis=-1)


def _encoder(graph: _Graph, shape: "Architecture", x: str) -> str:
    """The same operations as `layers.Encoder`."""
    name = "trunk.encoder"
    if shape.projection:
        x = graph.gelu(graph.linear(graph.layer_norm(x, f"{name}.norm"), f"{name}.project"))
    for i in range(shape.encoder_layers):
        x = graph.linear(x, f"{name}.layers.{i}")
        x = graph.relu(graph.layer_norm(x, f"{name}.norms.{i}") if shape.layer_norm else x)
    return x


def _attention(graph: _Graph, shape: "Architecture", layer: int, x: str, hidden: str | None) -> str:
    """The same operations as `layers.Attention`; `hidden` (B, 1, R) is true where no one may look."""
    name, width, heads = f"trunk.attention.{layer}", shape.attention, shape.attention_heads
    query, key, value = graph.parts(graph.linear(x, f"{name}.query_key_value"), (width,) * 3)
    if heads > 1:
        split = graph.integers(0, 0, heads, width // heads)
        query, key, value = (
            graph.node("Transpose", graph.node("Reshape", part, split), perm=[0, 2, 1, 3])
            for part in (query, key, value)
        )
        hidden = hidden and graph.node("Unsqueeze", hidden, graph.integers(1))
    query = graph.node("Mul", query, graph.number((width // heads) ** -0.5))
    scores = graph.node(
        "MatMul", query, graph.node("Transpose", key, perm=[0, 1, 3, 2] if heads > 1 else [0, 2, 1])
    )
    if hidden:
        scores = graph.node("Where", hidden, graph.number(MASKED), scores)
    found = graph.node("MatMul", graph.node("Softmax", scores, axis=-1), value)
    if heads > 1:
        found = graph.node("Transpose", found, perm=[0, 2, 1, 3])
        found = graph.node("Reshape", found, graph.integers(0, 0, width))
    return graph.node("Add", x, graph.linear(found, f"{name}.mix"))


def _memory(graph: _Graph, shape: "Architecture", embedding: str) -> str:
    """The same operations as `layers.Memory`; reads `state`, writes `next_state`."""
    x, following = embedding, []
    before = graph.parts("state", (shape.hidden,) * shape.gru_layers)
    for i in range(shape.gru_layers):
        name, thirds = "trunk.memory", (shape.hidden,) * 3
        reset_x, update_x, new_x = graph.parts(graph.linear(x, f"{name}.inputs.{i}"), thirds)
        reset_h, update_h, new_h = graph.parts(graph.linear(before[i], f"{name}.states.{i}"), thirds)
        keep = graph.node("Sigmoid", graph.node("Add", update_x, update_h))
        reset = graph.node("Sigmoid", graph.node("Add", reset_x, reset_h))
        new = graph.node("Tanh", graph.node("Add", new_x, graph.node("Mul", reset, new_h)))
        difference = graph.node("Sub", before[i], new)
        x = graph.node("Add", new, graph.node("Mul", keep, difference))
        following.append(x)
    graph.node("Concat", *following, axis=-1, output="next_state")
    return graph.node("Add", embedding, x)


def _actor(graph: _Graph, network: "RouterNetwork") -> None:
    """The same operations as `RouterNetwork.logits`, or as the actor's part of `step`."""
    shape, hidden, x = network.shape, None, "features"
    if network.available is not None:
        index = graph.integers(network.available)
        column = graph.node("Gather", x, index, axis=2)
        absent = graph.node("LessOrEqual", column, graph.number(0.5))
        hidden = graph.node("Transpose", absent, perm=[0, 2, 1])
    if shape.excluded:
        seen = np.ones(network.features, np.float32)
        seen[list(shape.excluded)] = 0.0
        x = graph.node("Mul", x, graph.constant("seen", seen))
    x = _encoder(graph, shape, x)
    for layer in range(shape.attention_layers):
        x = _attention(graph, shape, layer, x, hidden)
    if shape.gru_layers:
        x = _memory(graph, shape, x)
    x = graph.linear(graph.relu(graph.linear(x, "score_head.layer_1")), "score_head.layer_2")
    if network.available is None:
        graph.node("Squeeze", x, graph.integers(-1), output="logits")
    else:
        scores = graph.node("Squeeze", x, graph.integers(-1))
        absent = graph.node("Squeeze", hidden or "", graph.integers(1))
        graph.node("Where", absent, graph.number(MASKED), scores, output="logits")


def architecture(network: "RouterNetwork") -> dict[str, Any]:
    """What `fairlead.policy.forward` must know of an actor beside its weights."""
    shape = network.shape
    return {
        "features": network.features,
        "projection": bool(shape.projection),
        "encoder_layers": shape.encoder_layers,
        "layer_norm": shape.layer_norm,
        "attention_layers": shape.attention_layers,
        "attention_heads": shape.attention_heads,
        "gru_layers": shape.gru_layers,
        "available": network.available,
    }


def export_onnx(
    network: "RouterNetwork",
    path: Path,
    *,
    config: Mapping[str, Any],
    training: Mapping[str, Any],
    features: tuple[str, ...] = FEATURES,
) -> None:
    """Write the actor to `path`, complete or not at all.

    Input `features` (clusters, replicas, F) float32, output `logits` (clusters, replicas) float32. A policy
    with a memory also has the input `state` and the output `next_state`, (clusters, replicas, S) float32; the
    state before the first decision is zero.

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
    _actor(graph, network)
    shape = ["clusters", "replicas"]

    def tensor(name: str, *last: int) -> "onnx.ValueInfoProto":
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [*shape, *last])

    size = network.actor_state_size
    model = onnx.helper.make_model(
        onnx.helper.make_graph(
            graph.nodes,
            "fairlead-policy",
            [tensor("features", len(features)), *([tensor("state", size)] if size else [])],
            [tensor("logits"), *([tensor("next_state", size)] if size else [])],
            list(graph.constants.values()),
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
            "architecture": json.dumps(architecture(network), sort_keys=True),
            "config": json.dumps(config, sort_keys=True),
            "training": json.dumps(training, sort_keys=True),
        },
    )
    onnx.checker.check_model(model, full_check=True)
    with atomic(path) as partial:
        partial.write_bytes(model.SerializeToString())
