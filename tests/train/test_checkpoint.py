import pytest
import torch

from fairlead import FairleadError
from fairlead.policy.network import RouterNetwork
from fairlead.train import checkpoint
from fairlead.train.config import PPOConfig, TrainConfig
from fairlead.train.schedule import Constant
from fairlead.train.state import contents, fresh, restore

CONFIG = TrainConfig(seed=4)
FEATURES = ("a", "b", "c")


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with torch.random.fork_rng(devices=[]):
        checkpoint.save(path, contents(fresh(CONFIG, FEATURES), FEATURES), CONFIG)
    return path


def test_pitfall_31_a_checkpoint_has_everything(path):
    saved = checkpoint.load(path, CONFIG)
    assert set(saved) == checkpoint.FIELDS
    needed = {
        "network",
        "optimiser",
        "numpy_random",
        "torch_random",
        "reward_scale",
        "controllers",
        "memory",
        "episode",
    }
    assert needed <= set(saved)
    assert saved["config_hash"] == CONFIG.hash
    with pytest.raises(ValueError, match="optimiser"):
        checkpoint.save(path, {k: v for k, v in saved.items() if k != "optimiser"}, CONFIG)


def test_saving_leaves_no_debris(path):
    assert [each.name for each in path.parent.iterdir()] == ["checkpoint.pt"]


def test_a_crash_while_saving_leaves_the_old_checkpoint(path, monkeypatch):
    before = path.read_bytes()

    def crash(*_):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", crash)
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(path, contents(fresh(CONFIG, FEATURES), FEATURES), CONFIG)
    assert path.read_bytes() == before


def test_another_configuration_is_refused_by_name(path):
    other = CONFIG.model_copy(update={"seed": 5, "ppo": PPOConfig(clip=Constant(value=0.3))})
    with pytest.raises(FairleadError, match=r"these differ: ppo\.clip\.value, seed"):
        checkpoint.load(path, other)


@pytest.mark.parametrize("keep", [0, 10, 1000])
def test_a_corrupt_checkpoint_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(FairleadError, match="not a readable checkpoint"):
        checkpoint.load(path, CONFIG)


def test_a_missing_or_foreign_checkpoint_is_refused(path):
    torch.save({"network": {}}, path)
    with pytest.raises(FairleadError, match="another version"):
        checkpoint.load(path, CONFIG)
    path.unlink()
    with pytest.raises(FairleadError, match="no checkpoint"):
        checkpoint.load(path, CONFIG)


def test_pitfall_21_loading_is_strict(path):
    weights = RouterNetwork(3).state_dict()
    network = RouterNetwork(3, seed=9)
    checkpoint.load_weights(network, weights)
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in weights.items())
    renamed = {name.replace("trunk", "body"): tensor for name, tensor in weights.items()}
    for wrong in (renamed, {}, RouterNetwork(4).state_dict()):
        with pytest.raises(FairleadError, match="do not fit") as caught:
            checkpoint.load_weights(network, wrong)
        assert "\n" not in str(caught.value)
    saved = checkpoint.load(path, CONFIG)
    with pytest.raises(FairleadError, match="do not fit"):
        restore(saved, CONFIG, features=tuple("abcde"))


def test_a_checkpoint_of_another_schema_is_refused(path):
    saved = checkpoint.load(path, CONFIG)
    assert restore(saved, CONFIG, FEATURES).iteration == 0
    with pytest.raises(FairleadError, match="another view schema or dial"):
        restore(saved, CONFIG, features=("a", "b", "favor"))
