"""A policy is carried over to features that are newer than itself."""

import numpy as np
import onnxruntime
import pytest
import torch
from tools.widen_policy import widen

from fairlead import FairleadError
from fairlead.policy.artefact import OnnxRouter, actor_weights
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.view.features import FEATURES, NUM_FEATURES

OLD = FEATURES[:-3]


def export(path, features, **options):
    network = RouterNetwork(len(features), seed=2, available=FEATURES.index("available"), **options)
    torch.nn.init.normal_(network.score_head.layer_2.weight, generator=torch.Generator().manual_seed(1))
    export_onnx(network, path, config={"seed": 7}, training={}, features=features)
    return path


def test_the_scores_are_the_old_ones_whatever_the_new_features_say(tmp_path):
    old, new = export(tmp_path / "old.onnx", OLD), tmp_path / "new.onnx"
    with pytest.raises(FairleadError, match="another view schema"):
        OnnxRouter(old)
    widen(old, new)
    router = OnnxRouter(new)
    assert router.engine == "compiled" and router.metadata.features == FEATURES
    assert router.metadata.config == {"seed": 7}
    seen = np.random.default_rng(0).normal(0.5, 1, (50, 4, NUM_FEATURES)).astype(np.float32)
    before = onnxruntime.InferenceSession(old).run(None, {"features": seen[..., : len(OLD)]})[0]
    np.testing.assert_allclose(router.logits(seen), before, rtol=1e-5, atol=1e-5)
    assert actor_weights(new)["trunk.encoder.layers.0.weight"].shape[1] == NUM_FEATURES


def test_what_cannot_be_carried_over_is_refused(tmp_path):
    others = export(tmp_path / "others.onnx", (*OLD[1:], "something else"))
    with pytest.raises(FairleadError, match="not the first of today's"):
        widen(others, tmp_path / "new.onnx")
    projected = export(tmp_path / "projected.onnx", OLD, projection=8)
    with pytest.raises(FairleadError, match="cannot be widened"):
        widen(projected, tmp_path / "new.onnx")
    assert not (tmp_path / "new.onnx").exists()
