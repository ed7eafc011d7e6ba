import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fairlead import FairleadError
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.export import export_onnx
from fairlead.policy.network import NetworkRouter, RouterNetwork
from fairlead.policy.router import Router
from fairlead.train.losses import entropy
from fairlead.view.features import FEATURES, NUM_FEATURES, SCHEMA_HASH
from fairlead.view.schema import NUM_REPLICA_COLUMNS, NUM_REQUEST_COLUMNS, View

AVAILABLE_FEATURE = FEATURES.index("available")


def trained() -> RouterNetwork:
    network = RouterNetwork(seed=2)
    torch.nn.init.normal_(network.score_head.layer_2.weight, generator=torch.Generator().manual_seed(1))
    return network


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.onnx"
    export_onnx(trained(), path, config={"seed": 7}, training={"iterations": 3})
    return path


@pytest.mark.parametrize(("clusters", "replicas"), [(1, 1), (1, 4), (256, 4), (16, 64)])
def test_onnx_and_torch_agree(policy, clusters, replicas):
    features = np.random.default_rng(0).normal(0, 2, (clusters, replicas, NUM_FEATURES)).astype(np.float32)
    features[..., AVAILABLE_FEATURE] = 1
    ours = NetworkRouter(trained()).logits(features)
    np.testing.assert_allclose(OnnxRouter(policy).logits(features), ours, atol=1e-5, rtol=1e-5)


def test_routes_as_the_network_does(policy):
    rng = np.random.default_rng(1)
    view = View(rng.uniform(1, 9, (64, 4, NUM_REPLICA_COLUMNS)), rng.uniform(1, 9, (64, NUM_REQUEST_COLUMNS)))
    router = OnnxRouter(policy)
    assert isinstance(router, Router)
    router.reset(64, 4, 0)
    actions = router.route(view)
    assert actions.dtype == np.int64
    np.testing.assert_array_equal(actions, NetworkRouter(trained()).route(view))
    # One cluster at a time, as in a gateway; other sizes between them.
    for one in range(8):
        alone = View(view.replicas[one : one + 1], view.request[one : one + 1])
        np.testing.assert_array_equal(router.route(alone), actions[one : one + 1])
        assert router.route(View(alone.replicas[:, : 1 + one % 3], alone.request)).shape == (1,)


def test_an_unavailable_replica_is_never_chosen_and_the_others_keep_their_scores(policy):
    draw = np.random.default_rng(3)
    features = draw.normal(0, 2, (200, 4, NUM_FEATURES)).astype(np.float32)
    features[..., AVAILABLE_FEATURE] = draw.random((200, 4)) < 0.6
    features[:, 0, AVAILABLE_FEATURE] = 1
    available = features[..., AVAILABLE_FEATURE] == 1
    logits = OnnxRouter(policy).logits(features)
    assert available[np.arange(200), logits.argmax(1)].all()
    ours = NetworkRouter(trained()).logits(features)
    np.testing.assert_allclose(logits[available], ours[available], atol=1e-5, rtol=1e-5)
    log_probs = torch.log_softmax(torch.from_numpy(ours), -1)
    assert (log_probs.exp().numpy()[~available] == 0).all()
    assert torch.isfinite(entropy(log_probs))


def test_the_file_says_what_it_is(policy):
    metadata = OnnxRouter(policy).metadata
    assert metadata.schema_hash == SCHEMA_HASH
    assert metadata.features == FEATURES
    assert metadata.config == {"seed": 7}
    assert metadata.training == {"iterations": 3}
    assert OnnxRouter(policy).name == "policy"


def test_exporting_twice_gives_the_same_bytes(policy, tmp_path):
    again = tmp_path / "again.onnx"
    export_onnx(trained(), again, config={"seed": 7}, training={"iterations": 3})
    assert again.read_bytes() == policy.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.onnx", "policy.onnx"]


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FairleadError, match="no policy file"):
        OnnxRouter(tmp_path / "none.onnx")


@pytest.mark.parametrize("keep", [0, 100, 0.5, 0.99])
def test_a_corrupt_file_is_refused(policy, keep):
    content = policy.read_bytes()
    policy.write_bytes(content[: int(keep if keep >= 1 else keep * len(content))])
    with pytest.raises(FairleadError) as caught:
        OnnxRouter(policy)
    assert "\n" not in str(caught.value)


def test_a_foreign_onnx_file_is_refused(policy):
    import onnx

    model = onnx.load(policy)
    del model.metadata_props[:]
    onnx.save(model, policy)
    with pytest.raises(FairleadError, match="not a policy exported by fairlead"):
        OnnxRouter(policy)


def test_another_schema_is_refused(tmp_path):
    path = tmp_path / "other.onnx"
    export_onnx(RouterNetwork(2), path, config={}, training={}, features=("a", "b"))
    with pytest.raises(FairleadError, match="another view schema"):
        OnnxRouter(path)
    assert OnnxRouter(path, features=("a", "b")).metadata.features == ("a", "b")


def test_a_network_of_another_size_is_not_exported(tmp_path):
    with pytest.raises(FairleadError, match="reads 2 features"):
        export_onnx(RouterNetwork(2), tmp_path / "p.onnx", config={}, training={})
    assert not list(tmp_path.iterdir())


def test_routing_needs_no_torch(policy):
    code = (
        "import sys; from fairlead.policy.artefact import OnnxRouter; "
        f"assert OnnxRouter({str(policy)!r}).engine == 'compiled'; "
        "print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
