"""Training on live servers: an emulated cluster, in real time but faster."""

import json
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.emulated import emulated

from fairlead.errors import FairleadError
from fairlead.evaluate.live_gateway import Bounds
from fairlead.evaluate.results import load_results
from fairlead.policy.artefact import OnnxRouter, actor_weights
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.serve.settings import GatewaySettings, parse_settings
from fairlead.train.config import TrainConfig
from fairlead.train.live import fitted, in_words, objective, train_live
from fairlead.train.live_config import LiveConfig, with_defaults
from fairlead.train.live_env import LiveEnv, LivePlan, Waiting
from fairlead.train.rollout import Enough
from fairlead.train.run import train
from fairlead.train.trainer import TrainingInterrupted
from fairlead.view.features import FEATURES, NUM_FEATURES
from fairlead.view.preference import weights_of
from fairlead.workload.scenario import Scenario, generate, load_scenario

SPEED = 20.0
RATE = 20.0
WORKLOAD = {
    "arrivals": {"kind": "poisson"},
    "lengths": {"kind": "uniform", "prompt": {"min": 20, "max": 200}, "output": {"min": 2, "max": 40}},
}


@pytest.fixture(scope="module")
def scenario() -> Scenario:
    return load_scenario("uniform-lengths").replace(workload=WORKLOAD)


@pytest.fixture(scope="module")
def urls(scenario: Scenario) -> Iterator[list[str]]:
    with emulated(scenario, SPEED, model="tiny") as found:
        yield found


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "mine.onnx"
    config = TrainConfig.model_validate({"network": {"hidden": 16}})
    network = RouterNetwork(NUM_FEATURES, **config.network_options(), seed=0)  # type: ignore[arg-type]
    export_onnx(network, path, config=config.model_dump(mode="json"), training={}, features=FEATURES)
    return path


def settings(urls: list[str], **more: Any) -> GatewaySettings:
    backends = [{"url": url, "name": f"b{i}"} for i, url in enumerate(urls)]
    return parse_settings({"backends": backends, "scrape": {"interval": 0.1}, **more}, "test")


def small(start: Path, **live: Any) -> TrainConfig:
    given = {
        "threads": 1,
        "start_from": str(start),
        "imitation": None,
        "network": {"hidden": 16},
        "ppo": {"iterations": 2, "critic_warmup_iterations": 1, "rollout_steps": 24, "minibatch": 12},
        "live": {"comparison_requests": 20, "comparison_seeds": 2, **live},
    }
    return TrainConfig.model_validate(with_defaults(given))


def plan(scenario: Scenario, steps: int = 40, minutes: float = 1.0, **bounds: float) -> LivePlan:
    return LivePlan(
        lambda count, seed: generate(scenario, requests=count, rate=RATE, seed=seed, split="train"),
        steps,
        (0.5, 0.5),
        1.0,
        Bounds(minutes, **bounds),
        speed=SPEED,
    )


def load(urls: list[str]) -> int:
    """Requests that the servers are answering."""
    pages = [urllib.request.urlopen(f"{url}/load", timeout=5).read() for url in urls]
    return sum(json.loads(page)["server_load"] for page in pages)


def idle(urls: list[str]) -> bool:
    end = time.monotonic() + 20
    while load(urls) and time.monotonic() < end:
        time.sleep(0.02)
    return load(urls) == 0


class Noted(Waiting):
    """Notes when requests were due, and how long they waited until it was heard that they did not."""

    def __init__(self) -> None:
        super().__init__()
        self.due_s: list[float] = []
        self.waited_s = np.zeros(2)

    def came(self, due_s: float) -> None:
        super().came(due_s)
        self.due_s.append(due_s)

    def first(self, due_s: float) -> None:
        super().first(due_s)
        self.waited_s[0] += self._at_s - due_s

    def ended(self, due_s: float, first_s: float, finish_s: float, error: str) -> None:
        super().ended(due_s, first_s, finish_s, error)
        self.waited_s[1] += self._at_s - due_s


def test_a_recorded_trace_has_enough_for_the_comparison_too(scenario, urls, start, tmp_path):
    """On requests of evaluation, since training replays those of validation; refused before it begins."""
    log = tmp_path / "log.csv"
    header = "arrived_at,num_prefill_tokens,num_decode_tokens"
    log.write_text("\n".join([header, *(f"{i},9,5" for i in range(100))]))
    replayed = {"arrivals": {"kind": "replay", "path": log}, "lengths": {"kind": "trace", "path": log}}
    recorded = scenario.replace(workload=replayed)
    with pytest.raises(FairleadError, match=r"2 runs of 30 requests need 60 .* 50 are for evaluation"):
        train_live(
            small(start, comparison_requests=30), recorded, settings(urls), RATE, tmp_path / "x", speed=SPEED
        )
    assert not (tmp_path / "x").exists()


def test_rewards_are_the_waiting_of_all_requests_and_episodes_follow_each_other(scenario, urls, monkeypatch):
    """However long that is: a busy machine makes everything later, and nothing of this wrong."""
    monkeypatch.setattr("fairlead.train.live_env.Waiting", Noted)
    with LiveEnv(settings(urls), "tiny", plan(scenario, minutes=10.0)) as env:
        assert env.single_observation_space.shape == (2, NUM_FEATURES)
        for seed in (1, 2):
            observation, _ = env.reset(seed=seed)
            rewards, elapsed = [], []
            asked: list[Any] = [env._before]
            for i in range(40):
                assert observation.shape == (1, 2, NUM_FEATURES) and np.isfinite(observation).all()
                observation, reward, terminated, truncated, info = env.step(np.array([i % 2]))
                asked.append(env._before)
                rewards.append(float(reward[0]))
                elapsed.append(float(info["elapsed_s"][0]))
                assert not terminated[0] and truncated[0] == (i == 39)
            assert info["final_obs"] is observation
            env._wait_for_answers(env._episode)  # type: ignore[arg-type]
            waiting = env._router.waiting
            waiting.advance()
            assert isinstance(waiting, Noted) and len(waiting.finished) == 41
            # Little's law: all areas together are all latencies together, which end before it is heard of.
            np.testing.assert_allclose(waiting.areas[:2], waiting.waited_s)
            assert (np.array(waiting.finished).sum(0) < waiting.areas[:2] + 1e-6).all()
            # The rewards are those areas up to the last arrival.
            weights = -SPEED * np.array(weights_of(0.5))
            assert sum(rewards) == pytest.approx(float(weights @ (asked[-1].areas - asked[0].areas)))
            assert float(weights @ waiting.areas) < sum(rewards) < 0
            # Requests are due when the workload says, and decided about no sooner.
            arrivals = generate(scenario, requests=41, rate=RATE, seed=seed, split="train").arrival_s
            np.testing.assert_allclose(SPEED * np.diff(waiting.due_s), np.diff(arrivals), atol=1e-6)
            decided = np.array([each.at_s for each in asked])
            assert (decided >= waiting.due_s).all()
            np.testing.assert_allclose(elapsed, SPEED * np.diff(decided))
            first, second = env._server.gateway.backends  # type: ignore[union-attr]
            # Every second decision sent a request to each server; the last request went where fewer were.
            assert abs(first.requests - second.requests) <= 2
        numbers, totals = env.take_statistics()
        assert numbers["live/requests"] == 41 and len(totals) == 80
        assert 0 < numbers["live/ttft_mean_s"] < numbers["live/e2e_mean_s"]
        assert env.sent == 82


def test_a_policy_is_tuned_and_compared_with_what_it_was(scenario, urls, start, tmp_path: Path):
    told: list[str] = []
    out = tmp_path / "run"
    result = train_live(
        small(start), scenario, settings(urls), RATE, out, say=told.append, speed=SPEED, command="typed"
    )
    assert result.training.decisions == 3 * 24 and not result.training.ended_early
    before, after = actor_weights(start), actor_weights(out / "policy.onnx")
    assert any((before[name] != after[name]).any() for name in before)
    assert (out / "start.onnx").read_bytes() == start.read_bytes()
    OnnxRouter(out / "policy.onnx")
    log = (out / "training.csv").read_text(encoding="utf-8").splitlines()
    assert len(log) == 4 and "live/ttft_mean_s" in log[0] and "actions/replica_1" in log[0]
    answered = log[0].split(",").index("live/requests")
    assert [float(line.split(",")[answered]) for line in log[1:]] == [25.0] * 3  # every answer was waited for
    results = load_results(out / "comparison")
    assert results.configuration.router_names == ["start", "policy", "least_work"]
    assert result.comparison == objective(results, 0.5)
    assert any(in_words(result.comparison, small(start).live, 0.5) in line for line in told)  # type: ignore[arg-type]
    assert "3 iterations of 24 decisions on 2 live servers at 20 requests/s: 75 requests" in told[0]
    assert idle(urls)

    with pytest.raises(FairleadError, match="is not empty"):
        train_live(small(start), scenario, settings(urls), RATE, out, speed=SPEED)
    with pytest.raises(FairleadError, match="began on 2 servers"):
        train_live(small(start), None, settings(urls[:1]), RATE, out, resume=True, speed=SPEED)
    with pytest.raises(FairleadError, match="name them"):
        train(TrainConfig(), [], out, resume=True)


def test_the_time_ends_training_and_what_was_learned_stays(scenario, urls, start, tmp_path, monkeypatch):
    told: list[str] = []
    checked = LiveEnv._check_time
    begun: list[float] = []

    def over(env: LiveEnv, lasts_s: float) -> None:
        begun.append(lasts_s)
        if len(begun) == 3:
            env._ends_at = time.monotonic()
        checked(env, lasts_s)

    monkeypatch.setattr(LiveEnv, "_check_time", over)
    config = small(start, comparison_requests=0)
    result = train_live(
        config, scenario, settings(urls), RATE, tmp_path / "run", say=told.append, speed=SPEED
    )
    assert "minutes are over" in result.training.ended_early
    assert result.training.iteration == 2 and result.comparison is None
    assert any("training ended in iteration 2 of 3: the 60 minutes are over" in line for line in told)
    assert any("has not been measured" in line for line in told)
    assert (tmp_path / "run" / "policy.onnx").is_file()


def test_time_that_is_up_in_the_middle_of_an_episode_ends_it(scenario, urls):
    with LiveEnv(settings(urls), "tiny", plan(scenario, steps=2000)) as env:
        env.reset(seed=1)
        env._ends_at = time.monotonic()
        with pytest.raises(Enough, match="the 1 minutes are over"):
            env.step(np.array([0]))
    assert idle(urls)


def test_leaving_cuts_off_what_is_in_flight(scenario, urls):
    long = {"kind": "uniform", "prompt": {"min": 20, "max": 20}, "output": {"min": 50_000, "max": 50_000}}
    endless = scenario.replace(workload={**WORKLOAD, "lengths": long})
    threads = threading.active_count()
    with LiveEnv(settings(urls), "tiny", plan(endless)) as env:
        env.reset(seed=1)
        for i in range(10):
            env.step(np.array([i % 2]))
        assert load(urls) > 5
    assert idle(urls)
    assert threading.active_count() == threads


def test_an_interrupted_run_goes_on(scenario, urls, start, tmp_path, monkeypatch):
    out, config = tmp_path / "run", small(start, comparison_requests=0)
    step, steps = LiveEnv.step, []

    def interrupted(env: LiveEnv, actions: Any) -> Any:
        steps.append(1)
        if len(steps) == 30:
            raise KeyboardInterrupt
        return step(env, actions)

    monkeypatch.setattr(LiveEnv, "step", interrupted)
    with pytest.raises(TrainingInterrupted):
        train_live(config, scenario, settings(urls), RATE, out, speed=SPEED)
    assert idle(urls)
    result = train_live(TrainConfig(), None, settings(urls), 0.0, out, resume=True, speed=SPEED)
    assert result.training.decisions == 3 * 24 and len(steps) == 30 + 2 * 24


def test_a_failing_request_ends_training(scenario, urls):
    with LiveEnv(settings(urls), "tiny", plan(scenario, request_s=0.002)) as env:
        with pytest.raises(FairleadError, match="because a request failed: no complete answer"):
            env.reset(seed=1)
            for i in range(40):
                env.step(np.array([i % 2]))
            env.reset(seed=2)
    assert idle(urls)


def test_a_server_that_is_out_ends_training(scenario, urls):
    with LiveEnv(settings(urls), "tiny", plan(scenario)) as env:
        env.reset(seed=1)
        first, _ = env._server.gateway.backends  # type: ignore[union-attr]
        first.draining = True
        with pytest.raises(FairleadError, match="with 1 of 2 servers"):
            for i in range(40):
                env.step(np.array([i % 2]))
    assert idle(urls)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"urls": 1}, "nothing to route among 1"),
        ({"max_in_flight": 3}, "b0 has max_in_flight"),
        ({"requests": 100}, r"live.requests 100: enough for 0 iterations of 25 requests"),
        ({"minutes": 0.003}, r"0.003 minutes at 20 requests/s: enough for 0"),
        ({"long": True}, "are longer than tiny takes"),
        ({"absent": True}, "127.0.0.1:1: no connection"),
    ],
    ids=["one", "limit", "requests", "minutes", "long", "absent"],
)
def test_what_cannot_be_trained_is_refused(scenario, urls, start, tmp_path, change, message):
    chosen, config = settings(urls[: change.get("urls", 2)]), small(start)
    if "max_in_flight" in change:
        backends = [{"url": url, "name": f"b{i}", "max_in_flight": 3} for i, url in enumerate(urls)]
        chosen = parse_settings({"backends": backends}, "test")
    if "requests" in change:
        config = small(start, requests=change["requests"])
    if "minutes" in change:
        config = config.model_copy(update={"minutes": change["minutes"]})
    if "long" in change:
        huge = {"kind": "uniform", "prompt": {"min": 10**6, "max": 10**6}, "output": {"min": 2, "max": 2}}
        scenario = scenario.replace(workload={**WORKLOAD, "lengths": huge})
    if "absent" in change:
        chosen = settings(["http://127.0.0.1:1", urls[0]])
    with pytest.raises(FairleadError, match=message):
        train_live(config, scenario, chosen, RATE, tmp_path / "run", speed=SPEED)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_from": None}, "--start-from"),
        ({"imitation": {}}, "imitation must be null"),
        ({"ppo": {"reset_every": 2}}, "reset_every must be 1"),
        ({"environment": {"reward": {"kind": "hybrid"}}}, "the reward is sojourn"),
        ({"environment": {"curriculum": [{"begins": 0.0}]}}, "no curriculum"),
    ],
    ids=["start", "imitation", "episodes", "reward", "curriculum"],
)
def test_settings_that_make_no_sense_live_are_refused(change, message):
    given = with_defaults({"start_from": "a.onnx", "imitation": None, "ppo": {}, **change})
    with pytest.raises(ValueError, match=message):
        TrainConfig.model_validate(given)


def test_as_many_iterations_as_requests_and_time_allow():
    config = TrainConfig.model_validate(with_defaults({"start_from": "a.onnx", "imitation": None}))
    assert config.live == LiveConfig()
    by_requests = fitted(config, rate=100.0)
    assert by_requests.ppo.total_iterations == (4000 - 1500) // 257
    assert by_requests.ppo.critic_warmup_iterations == 3
    short = config.model_copy(update={"minutes": 30.0})
    assert fitted(short, rate=2.0).ppo.total_iterations == int((1800 - 1.5 * 1500 / 2) * 2 / 257)
    few = config.model_copy(update={"ppo": config.ppo.model_copy(update={"iterations": 2})})
    assert fitted(few, rate=100.0).ppo.total_iterations == 5


def test_what_requests_cost_by_the_tail_is_charged_once_and_while_they_wait(monkeypatch):
    now = [10.0]
    monkeypatch.setattr("fairlead.train.live_env.time.perf_counter", lambda: now[0])
    waiting = Waiting()
    waiting.tail_s = 2.0
    for due_s in (9.0, 10.0):
        waiting.came(due_s)
    now[0] = 11.0
    waiting.first(9.0)  # after 2 s: no later than the tail begins
    now[0] = 14.0
    waiting.advance()
    assert waiting.areas[2] == pytest.approx(2.0 + 0.02 * 2.0)  # the other one is 2 s late already
    now[0] = 15.0
    waiting.first(10.0)  # after 5 s
    now[0] = 20.0
    waiting.ended(9.0, 11.0, 20.0, "")
    waiting.ended(10.0, 15.0, 20.0, "")
    np.testing.assert_allclose(waiting.areas, [2.0 + 5.0, 11.0 + 10.0, 3.0 + 2 * 0.02 * 2.0])
    waiting.came(16.0)  # 4 s late when it is sent
    now[0] = 25.0
    waiting.ended(16.0, float("nan"), float("nan"), "gone")  # without a first token
    now[0] = 30.0
    waiting.advance()
    np.testing.assert_allclose(waiting.areas, [16.0, 30.0, 3.0 + 2 * 0.02 * 2.0 + 7.0])
