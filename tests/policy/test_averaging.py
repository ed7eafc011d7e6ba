"""The mean of policies."""

import numpy as np
import pytest
import torch

from fairlead import FairleadError
from fairlead.policy.artefact import OnnxRouter, actor_weights
from fairlead.policy.averaging import average
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.view.features import FEATURES, NUM_FEATURES


def export(path, seed, **options):
    network = RouterNetwork(NUM_FEATURES, seed=seed, available=FEATURES.index("available"), **options)
    torch.nn.init.normal_(network.score_head.layer_2.weight, generator=torch.Generator().manual_seed(seed))
    export_onnx(network, path, config={"seed": seed}, training={"decisions": seed})
    return path


def test_the_weights_are_the_mean_and_the_rest_is_the_last_ones(tmp_path):
    paths = [export(tmp_path / f"{seed}.onnx", seed) for seed in (1, 2, 3)]
    average(paths, tmp_path / "mean.onnx")
    found, parts = actor_weights(tmp_path / "mean.onnx"), [actor_weights(path) for path in paths]
    for name, value in found.items():
        np.testing.assert_allclose(value, sum(part[name] for part in parts) / 3, rtol=1e-5, atol=1e-7)
    router = OnnxRouter(tmp_path / "mean.onnx")  # it checks that graph and weights agree
    assert router.engine == "compiled" and router.metadata.config == {"seed": 3}
    assert router.metadata.training == {"decisions": 3, "mean_of": [str(path) for path in paths]}


def test_the_mean_of_one_policy_with_itself_decides_like_it(tmp_path):
    path = export(tmp_path / "one.onnx", 5)
    average([path, path], tmp_path / "mean.onnx")
    seen = np.random.default_rng(0).normal(0.5, 1, (20, 4, NUM_FEATURES)).astype(np.float32)
    one, mean = OnnxRouter(path), OnnxRouter(tmp_path / "mean.onnx")
    np.testing.assert_allclose(one.logits(seen), mean.logits(seen), rtol=1e-6)


def test_what_has_no_mean_is_refused(tmp_path):
    one, other = export(tmp_path / "one.onnx", 1), export(tmp_path / "other.onnx", 1, hidden=16)
    with pytest.raises(FairleadError, match="differ in their network"):
        average([one, other], tmp_path / "mean.onnx")
    with pytest.raises(FairleadError, match="at least two"):
        average([one], tmp_path / "mean.onnx")
    assert not (tmp_path / "mean.onnx").exists()
