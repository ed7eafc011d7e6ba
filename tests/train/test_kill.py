"""A run that is killed at any moment, even while it writes, resumes bit for bit."""

import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import FEATURES, Queues, toy_config
from fairlead.train.trainer import train
import numpy as np
directory = Path(sys.argv[1])
def evaluate(router):
    env = Queues(8, group=1, episode=10**9)
    observation, _ = env.reset(seed=1)
    total = 0.0
    for _ in range(20):
        observation, reward, *_ = env.step(router.logits(observation).argmax(1))
        total -= float(reward.mean())
    return total
config = toy_config(kl_control="adaptive", iterations=12)
resume = (directory / "checkpoint.pt").exists()
print("ready", flush=True)
train(config, directory, Queues, evaluate=evaluate, features=FEATURES, resume=resume)
"""


def start(directory: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(directory), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout as stdout:
        assert stdout.readline() == "ready\n"
    return process


def comparable(directory: Path) -> dict[str, object]:
    saved = torch.load(directory / "checkpoint.pt", weights_only=True)
    saved["history"] = [{k: v for k, v in row.items() if k != "seconds"} for row in saved["history"]]
    return {k: v for k, v in saved.items() if k not in ("seconds", "seconds_by_phase")}


def same(a: object, b: object) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    began = time.monotonic()
    assert start(tmp_path / "whole").wait(timeout=200) == 0
    whole = time.monotonic() - began
    dice, killed = random.Random(0), 0
    for _ in range(12):
        process = start(tmp_path / "cut")
        try:
            process.wait(timeout=dice.uniform(0.02, 0.4) * whole)
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
        if not (tmp_path / "cut" / "checkpoint.pt").exists() and (tmp_path / "cut").exists():
            for left in (tmp_path / "cut").iterdir():  # killed before there was anything to resume
                left.unlink()
    else:
        assert start(tmp_path / "cut").wait(timeout=200) == 0
    assert killed > 0
    assert same(comparable(tmp_path / "cut"), comparable(tmp_path / "whole"))
    policies = [(tmp_path / name / "policy.onnx").read_bytes() for name in ("cut", "whole")]
    assert policies[0] == policies[1]
    for log, clocks in (("training.csv", (2, 3)), ("imitation.csv", (2,))):
        rows = [
            [
                [x for i, x in enumerate(line.split(",")) if i not in clocks]
                for line in (tmp_path / name / log).read_text().splitlines()
            ]
            for name in ("cut", "whole")
        ]
        assert rows[0] == rows[1]
