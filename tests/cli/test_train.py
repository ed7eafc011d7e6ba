"""`fairlead train`, from the command line."""

import pytest


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ((), "--scenario"),
        (("--scenario", "chat-unequl"), "chat-unequal"),
        (("--scenario", "uniform-lengths", "--load", "1.5"), "1.5"),
        (("--scenario", "uniform-lengths", "--set", "ppo.learning_rate"), "--set"),
        (("--scenario", "uniform-lengths", "--set", "ppo.clipp=0.1"), "clip"),
        (("--scenario", "uniform-lengths", "--set", "ppo.clip=-1"), "ppo.clip"),
        (("--scenario", "uniform-lengths", "--config", "none.yaml"), "none.yaml"),
        (("--scenario", "uniform-lengths", "--resume"), "--resume"),
        (("--resume", "--seed", "1"), "--resume"),
    ],
)
def test_what_cannot_be_trained_is_one_line_and_leaves_nothing(fairlead, tmp_path, options, named):
    out = tmp_path / "run"
    ended = fairlead("train", "--out", str(out), *options)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("error: ") and ended.err.count("\n") == 1
    assert named in ended.err
    assert not out.exists()
