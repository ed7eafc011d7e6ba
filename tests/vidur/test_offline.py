"""Vidur itself runs here (marker `vidur`), except for what is refused before it starts."""

from importlib.metadata import PackageNotFoundError

import numpy as np
import pytest

from fairlead.calibrate.operators import VidurTables, vidur_tables
from fairlead.errors import FairleadError
from fairlead.simulator.hardware import device, model
from fairlead.simulator.timing import analytic
from fairlead.simulator.vidur_profile import TOKEN_OPERATORS
from fairlead.vidur import offline
from fairlead.vidur.offline import VidurCluster, VidurReplica, VidurRun, predictions
from fairlead.workload.requests import Requests

FAST = vidur_tables(
    analytic(model("llama-3-8b"), device("h100")), max_tokens=512, max_seqs=32, max_context=700
)
SLOW = vidur_tables(
    analytic(model("llama-3-8b"), device("h100"), slowdown=3.0), max_tokens=512, max_seqs=32, max_context=700
)
ONE = Requests(np.array([1.0]), np.array([300]), np.array([3]))


def cluster(*tables: VidurTables, blocks: int = 2000, scheduler="sarathi", **options) -> VidurCluster:
    return VidurCluster([VidurReplica(each, blocks) for each in tables], scheduler, 512, 32, **options)


def some(count: int, gap: float = 0.05) -> Requests:
    draw = np.random.default_rng(3)
    return Requests(
        np.cumsum(draw.exponential(gap, count)), draw.integers(2, 400, count), draw.integers(1, 200, count)
    )


def test_the_predictions_have_every_key_that_vidur_looks_up():
    tables = predictions(FAST, layers=32)
    assert set(tables) == {*TOKEN_OPERATORS, "attn_kv_cache_save", "attn_decode", "attn_prefill"}
    assert tables["mlp_up_proj"][(512,)] * 32e-3 == pytest.approx(FAST.tokens_s[-1])
    assert len(tables["attn_decode"]) == FAST.decode_s.size
    assert tables["attn_prefill"][(16, 64)] * 32e-3 == pytest.approx(FAST.prefill_s[1, 1])


def test_without_vidur_the_error_says_what_to_install(monkeypatch):
    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(offline, "version", absent)
    with pytest.raises(FairleadError, match=r"pip install 'fairlead\[vidur\]'"):
        offline.check_installed()
    monkeypatch.setattr(offline, "version", lambda name: "0.0.9")
    with pytest.raises(FairleadError, match=r"vidur 0\.0\.9 is installed"):
        offline.check_installed()


@pytest.mark.vidur
def test_one_request_takes_the_sum_of_its_iterations():
    run = VidurRun(cluster(FAST), ONE, "round_robin")
    run.run()
    outcomes = run.outcomes()
    first = FAST.iteration_s([], [(0, 300)])
    assert outcomes.first_token_s[0] == pytest.approx(1.0 + first, abs=1e-12)
    rest = FAST.iteration_s([301], []) + FAST.iteration_s([302], [])
    assert outcomes.finish_s[0] == pytest.approx(1.0 + first + rest, abs=1e-12)
    assert outcomes.replica.tolist() == [0]


@pytest.mark.vidur
@pytest.mark.parametrize("scheduler", ["sarathi", "vllm"])
def test_a_router_of_ours_and_vidurs_own_round_robin_agree_run_after_run(scheduler):
    requests = some(60)
    turns = iter(range(60))
    ours = VidurRun(cluster(FAST, FAST, scheduler=scheduler), requests, lambda now, r: next(turns) % 2)
    ours.run()
    own = VidurRun(cluster(FAST, FAST, scheduler=scheduler, native=True), requests, "round_robin")
    own.run()
    a, b = ours.outcomes(), own.outcomes()
    assert np.array_equal(a.replica, b.replica)
    np.testing.assert_allclose(a.finish_s, b.finish_s, rtol=0, atol=1e-12)
    np.testing.assert_allclose(a.first_token_s, b.first_token_s, rtol=0, atol=1e-12)


@pytest.mark.vidur
def test_every_replica_has_its_own_times():
    pair = Requests(np.array([0.0, 0.0]), np.array([300, 300]), np.array([1, 1]))
    run = VidurRun(cluster(FAST, SLOW), pair, lambda now, request: request.number)
    run.run()
    assert run.outcomes().first_token_s[1] == pytest.approx(3 * run.outcomes().first_token_s[0])


@pytest.mark.vidur
def test_nothing_is_printed(capsys):
    VidurRun(cluster(FAST), ONE, "lor").run()
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


@pytest.mark.vidur
def test_what_vidur_could_never_serve_is_refused():
    with pytest.raises(FairleadError, match="300 tokens never fits into 10 KV blocks"):
        VidurRun(cluster(FAST, blocks=10), ONE, "round_robin")
    long = Requests(np.array([1.0]), np.array([600]), np.array([3]))
    with pytest.raises(FairleadError, match="does not split prompts"):
        VidurRun(cluster(FAST, scheduler="vllm"), long, "round_robin")


@pytest.mark.vidur
def test_preemption_is_beyond_vidur():
    with pytest.raises(FairleadError, match="had been preempted"):
        VidurRun(cluster(FAST, blocks=60), some(30, gap=0.001), "round_robin").run()
