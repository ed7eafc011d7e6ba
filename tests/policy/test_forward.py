"""The compiled forward pass against ONNX Runtime and against torch, over all options of the network."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fairlead import FairleadError
from fairlead.policy import forward
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.constants import read_constants
from fairlead.policy.export import architecture, export_onnx
from fairlead.policy.network import NetworkRouter, RouterNetwork

NAMES = ("a", "b", "c", "d", "e", "f", "available")
OPTIONS = st.fixed_dictionaries(
    {
        "hidden": st.sampled_from([6, 16, 17]),
        "encoder_layers": st.integers(1, 3),
        "projection": st.sampled_from([0, 5]),
        "layer_norm": st.booleans(),
        "attention": st.sampled_from([4, 12]),
        "attention_layers": st.integers(0, 2),
        "attention_heads": st.sampled_from([1, 2, 4]),
        "excluded": st.sampled_from([(), (1, 3)]),
        "available": st.sampled_from([None, 6]),
    }
)


def network(**options: Any) -> RouterNetwork:
    """No weight is what it was initialised to: biases and norms count as well."""
    found = RouterNetwork(len(NAMES), seed=3, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return found


def export(folder: Path, net: RouterNetwork) -> Path:
    path = folder / "policy.onnx"
    export_onnx(net, path, config={}, training={}, features=NAMES)
    return path


def observation(clusters: int, replicas: int, absent: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    draw = np.random.default_rng(clusters * 100 + replicas)
    x = draw.normal(0, 2, (clusters, replicas, len(NAMES))).astype(np.float32)
    x[..., 6] = draw.random((clusters, replicas)) >= absent
    return x


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policies")


@settings(max_examples=60, deadline=None)
@given(
    OPTIONS, st.sampled_from([(1, 1), (1, 4), (3, 5), (300, 3), (2, 64)]), st.sampled_from([0.0, 0.5, 1.0])
)
def test_three_engines_give_the_same_scores(
    folder: Path, options: dict[str, Any], size: tuple[int, int], absent: float
) -> None:
    net = network(**options)
    content = export(folder, net).read_bytes()
    actor = forward.pack(architecture(net), read_constants(content))
    assert actor is not None
    x = observation(*size, absent)
    compiled = forward.logits(actor, x)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (graph,) = session.run(None, {"features": x})
    np.testing.assert_allclose(compiled, graph, atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(compiled, NetworkRouter(net).logits(x), atol=1e-4, rtol=1e-4)


def test_a_batch_and_its_clusters_one_by_one_give_the_same_bits(folder: Path) -> None:
    router, x = OnnxRouter(export(folder, network()), features=NAMES), observation(200, 3, 0.2)
    alone = [router.logits(x[c : c + 1]) for c in range(len(x))]
    np.testing.assert_array_equal(router.logits(x), np.concatenate(alone))


def test_the_policy_says_what_runs_it(folder: Path) -> None:
    assert OnnxRouter(export(folder, network()), features=NAMES).engine == "compiled"
    assert OnnxRouter(export(folder, network(gru_layers=1)), features=NAMES).engine == "onnxruntime"


def rewrite(path: Path, changes: dict[str, str | None]) -> None:
    """Other metadata, the same graph."""
    model = onnx.load(path)
    properties: dict[str, str | None] = {each.key: each.value for each in model.metadata_props} | changes
    onnx.helper.set_model_props(model, {k: v for k, v in properties.items() if v is not None})
    onnx.save(model, path)


@pytest.mark.parametrize("text", [None, '{"features": 7, "experts": 4}'])
def test_an_unknown_architecture_is_left_to_onnx_runtime(folder: Path, text: str | None) -> None:
    net, x = network(), observation(3, 4, 0.2)
    path = export(folder, net)
    rewrite(path, {"architecture": text})
    router = OnnxRouter(path, features=NAMES)
    assert router.engine == "onnxruntime"
    np.testing.assert_allclose(router.logits(x), NetworkRouter(net).logits(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("was", "becomes"),
    [
        ('"attention_heads": 1', '"attention_heads": 2'),
        ('"attention_layers": 1', '"attention_layers": 0'),
        ('"encoder_layers": 2', '"encoder_layers": 1'),
        ('"encoder_layers": 2', '"encoder_layers": 3'),
        ('"available": 6', '"available": null'),
        ('"available": 6', '"available": 0'),
        ('"available": 6', '"available": 7'),
        ('"features": 7', '"features": 6'),
        ('"projection": false', '"projection": true'),
        ('"layer_norm": false', '"layer_norm": true'),
    ],
)
def test_a_file_whose_architecture_is_not_that_of_its_graph_is_refused(
    folder: Path, was: str, becomes: str
) -> None:
    path = export(folder, network(available=6))
    said = OnnxRouter(path, features=NAMES)._session.get_modelmeta().custom_metadata_map["architecture"]
    assert was in said
    rewrite(path, {"architecture": said.replace(was, becomes)})
    with pytest.raises(FairleadError, match="export it again"):
        OnnxRouter(path, features=NAMES)


def test_constants_are_those_that_onnx_reads(folder: Path) -> None:
    path = export(folder, network(attention_heads=2, excluded=(1,)))
    ours = read_constants(path.read_bytes())
    theirs = {each.name: onnx.numpy_helper.to_array(each) for each in onnx.load(path).graph.initializer}
    assert set(ours) == set(theirs)
    for name, value in theirs.items():
        assert ours[name].dtype == value.dtype
        np.testing.assert_array_equal(ours[name], value)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damaged_bytes_are_refused_or_read_but_never_crash(folder: Path, data: st.DataObject) -> None:
    path = folder / "small.onnx"
    if not path.exists():
        export_onnx(network(hidden=4, attention=4), path, config={}, training={}, features=NAMES)
    content = bytearray(path.read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[at] = data.draw(st.integers(0, 255))
    try:
        read_constants(bytes(content[: data.draw(st.integers(0, len(content)))]))
    except FairleadError:
        pass
