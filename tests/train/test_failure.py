"""What is not finite stops the run, with the step, the culprit and a file to reproduce it."""

import numpy as np
import pytest
import torch

from fairlead.errors import FairleadError
from fairlead.train.device import check_device
from fairlead.train.failure import FAILURE_FILE
from fairlead.train.trainer import train


def breaking(toy, what: str, at: int):
    """The queues, in which a number breaks at one step."""

    class Broken(toy.make):  # type: ignore[misc]
        steps = 0

        def step(self, actions):
            observation, reward, *rest = super().step(actions)
            type(self).steps += 1
            if type(self).steps == at:
                (observation if what == "observations" else reward)[3] = np.nan
            return observation, reward, *rest

    return Broken


@pytest.mark.parametrize(
    ("what", "at", "place"), [("rewards", 41, "step 0"), ("observations", 50, "step 10")]
)
def test_pitfall_32_a_view_or_reward_that_is_not_finite_is_never_swallowed(
    toy, tmp_path, what, at, place
) -> None:
    with pytest.raises(FairleadError, match=rf"{what} is not finite at {place} of the rollout, cluster 3"):
        train(toy.config(), tmp_path / "run", breaking(toy, what, at), features=toy.features)


def test_pitfall_32_a_loss_that_is_not_finite_leaves_what_it_came_from(toy, tmp_path, monkeypatch) -> None:
    from fairlead.train import ppo

    make_batch = ppo.make_batch

    def broken(*args):
        batch = make_batch(*args)
        batch.advantages[5] = float("inf")
        return batch

    monkeypatch.setattr(ppo, "make_batch", broken)
    config = toy.config(critic_warmup_iterations=0)
    with pytest.raises(FairleadError, match=r"is not finite in epoch 1, .*advantages.*iteration 0") as caught:
        train(config, tmp_path / "run", toy.make, features=toy.features)
    assert FAILURE_FILE in str(caught.value)
    saved = torch.load(tmp_path / "run" / FAILURE_FILE, weights_only=True)
    assert saved["culprit"] == "part 0: advantages"
    assert torch.isinf(saved["tensors"]["part 0: advantages"]).any()
    assert "trunk.encoder.layers.0.weight" in saved["network"]
    assert saved["iteration"] == 0


def test_a_device_that_is_not_there_is_refused_before_anything_is_done(toy, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(FairleadError, match="finds no GPU"):
        train(toy.config().model_copy(update={"device": "cuda"}), tmp_path / "run", toy.make)
    assert not (tmp_path / "run").exists()
    check_device("cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_learning_on_a_gpu_gives_the_same_losses(toy, tmp_path) -> None:
    results = [
        train(
            toy.config().model_copy(update={"device": device}),
            tmp_path / device,
            toy.make,
            features=toy.features,
            evaluate=toy.evaluate,
        ).objective
        for device in ("cpu", "cuda")
    ]
    assert results[0] == pytest.approx(results[1], rel=0.2)


def test_unstable_training_is_counted_and_can_stop_the_run(toy, tmp_path) -> None:
    stability = {"kl_spike": 1e-9, "entropy_collapse": 0.0001}
    config = toy.config().model_validate(toy.config().model_dump() | {"stability": stability})
    train(config, tmp_path / "counted", toy.make, features=toy.features)
    header, *rows = (r.split(",") for r in (tmp_path / "counted" / "training.csv").read_text().splitlines())
    spikes = [row[header.index("stability/kl_spike")] for row in rows]
    assert spikes == ["0.0"] + ["1.0"] * 4  # nothing is judged while the critic warms up
    strict = config.model_validate(config.model_dump() | {"stability": stability | {"stop": True}})
    with pytest.raises(FairleadError, match=r"became unstable in iteration 1 \(kl_spike\)"):
        train(strict, tmp_path / "stopped", toy.make, features=toy.features)
