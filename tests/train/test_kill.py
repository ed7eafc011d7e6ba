"""A run that is killed at any moment, even while it writes, resumes bit for bit."""

import subprocess
import sys
from pathlib import Path

import torch

SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from conftest import FEATURES, Queues, toy_config
from fairlead.train.trainer import train
import torch
torch.set_num_threads(1)

def evaluate(router):
    env = Queues(8, group=1, episode=10**9)
    observation, _ = env.reset(seed=1)
    total = 0.0
    for _ in range(20):
        observation, reward, *_ = env.step(router.logits(observation).argmax(1))
        total -= float(reward.mean())
    return total

def start(directory):
    pid = os.fork()  # everything is imported: a child is in the middle of its work at once
    if pid == 0:
        status = 1
        try:
            config = toy_config(kl_control="adaptive", iterations=8)
            resume = (directory / "checkpoint.pt").exists()
            train(config, directory, Queues, evaluate=evaluate, features=FEATURES, resume=resume)
            status = 0
        finally:
            os._exit(status)
    return pid

base = Path(sys.argv[1])
began = time.monotonic()
assert os.waitpid(start(base / "whole"), 0)[1] == 0
whole = time.monotonic() - began
dice, killed = random.Random(0), 0
for _ in range(10):
    pid = start(base / "cut")
    time.sleep(dice.uniform(0.05, 0.4) * whole)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    killed += os.WIFSIGNALED(status)
    if os.WIFEXITED(status):
        break
    if (base / "cut").exists() and not (base / "cut" / "checkpoint.pt").exists():
        for left in (base / "cut").iterdir():  # killed before there was anything to resume
            left.unlink()
else:
    status = os.waitpid(start(base / "cut"), 0)[1]
assert status == 0, status
print(killed)
"""


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


def test_a_run_killed_at_random_moments_ends_bit_for_bit_as_one_that_was_not(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(Path(__file__).parent)],
        capture_output=True,
        text=True,
        check=False,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
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
