"""The environments: Gymnasium's contracts, the reward, groups, episodes."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from fairlead.env.single import RouterEnv
from fairlead.env.vector import RouterVectorEnv
from fairlead.errors import FairleadError
from fairlead.view.features import NUM_FEATURES
from fairlead.view.preference import Weights, weights_of
from fairlead.workload.scenario import load_scenario

DEMO = [load_scenario("chat-equal"), load_scenario("chat-unequal")]


def small(**changes) -> RouterVectorEnv:
    settings = {"num_envs": 8, "group": 4, "episode_requests": 60, **changes}
    return RouterVectorEnv(settings.pop("scenarios", DEMO), **settings)


def test_gymnasium_finds_it_and_its_checker_passes() -> None:
    env = gymnasium.make("fairlead/Router-v0", scenario="chat-unequal", episode_requests=40)
    assert isinstance(env.unwrapped, RouterEnv)
    check_env(env.unwrapped, skip_render_check=True)


def test_gymnasium_makes_the_native_vector_environment() -> None:
    env = gymnasium.make_vec(
        "fairlead/Router-v0", vectorization_mode="vector_entry_point", scenarios=DEMO, num_envs=8
    )
    assert isinstance(env.unwrapped, RouterVectorEnv)
    assert env.metadata["autoreset_mode"] == gymnasium.vector.AutoresetMode.SAME_STEP


def test_the_vector_environment_takes_a_scenario_as_the_plain_one_does() -> None:
    env = gymnasium.make_vec("fairlead/Router-v0", scenario="chat-unequal", num_envs=8, episode_requests=20)
    native = env.unwrapped
    assert isinstance(native, RouterVectorEnv)
    assert native.scenario_names == ["chat-unequal"] * 8
    two = RouterVectorEnv(["chat-unequal", "chat-equal"], num_envs=2, group=1)
    assert two.scenario_names == ["chat-unequal", "chat-equal"]
    with pytest.raises(FairleadError, match="give one of them"):
        RouterVectorEnv(DEMO, scenario="chat-equal")
    with pytest.raises(FairleadError, match="give a multiple of 8, or another group, such as group=1"):
        gymnasium.make_vec("fairlead/Router-v0", scenario="chat-unequal", num_envs=12)


@pytest.mark.parametrize(("scenario", "replicas"), [("chat-equal", 4), ("chat-8", 8)])
def test_dimensions_come_from_scenario_and_schema(scenario: str, replicas: int) -> None:
    env = RouterEnv(scenario, load=0.6, episode_requests=20)
    assert env.observation_space.shape == (replicas, NUM_FEATURES)
    assert env.action_space == gymnasium.spaces.Discrete(replicas)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)


def test_the_reward_is_the_latency() -> None:
    """Little: the rewards of a whole run add up to the weighted sum of all TTFT, E2E and excess."""
    env = small(num_envs=4, group=1, favor=(0.5, 0.5), load=(0.3, 0.3))
    env.reset(seed=0)
    total = np.zeros(4)
    for _ in range(59):
        _, reward, *_ = env.step(np.zeros(4, np.int64))
        total += reward
    clusters = env.clusters
    now = clusters.state.clusters["now"]
    requests = clusters.state.requests
    for c in range(4):
        rows = requests[c][:59]
        ends = [
            np.where(np.isnan(rows[f]), now[c], np.minimum(rows[f], now[c]))
            for f in ("first_token", "finish")
        ]
        waits = [(end - rows["arrival"]).sum() for end in ends]
        begins = clusters.state.clusters["tail_begins"][c]
        waits.append(np.maximum(ends[0] - rows["arrival"] - begins, 0.0).sum())
        waits[2] += 0.02 * begins * (rows["first_token"] <= now[c]).sum()
        assert waits[2] > 0.5
        assert total[c] == pytest.approx(-(np.array(weights_of(0.5)) @ waits), rel=1e-9)


def test_who_starves_is_charged_meanwhile() -> None:
    """Not when the first token comes at last: that may be beyond the horizon, or the episode."""
    env = small(
        scenarios=DEMO[1:], num_envs=2, group=1, episode_requests=400, favor=(1.0, 1.0), load=(1.0, 1.0)
    )
    env.reset(seed=0)
    for _ in range(300):
        env.step(np.zeros(2, np.int64))
    state = env.clusters.state
    late = 0
    for _ in range(20):
        _, reward, *_, info = env.step(np.zeros(2, np.int64))
        begins = state.clusters["tail_begins"][:, None]
        waits = state.clusters["now"][:, None] - state.requests["arrival"]
        starves = np.isnan(state.requests["first_token"]) & (waits - info["elapsed_s"][:, None] > begins)
        late += int(starves.sum())
        assert (-reward >= weights_of(1.0).tail * info["elapsed_s"] * starves.sum(1) * (1 - 1e-9)).all()
    assert late > 20


def test_pitfall_06_one_late_request_shows_at_once() -> None:
    """The reward is a rate of waiting now, not an average since the start: it does not fade with time."""
    for steps in (20, 400):
        env = small(num_envs=2, group=2, episode_requests=1000, load=(0.3, 0.3))
        env.reset(seed=0)
        for t in range(steps):
            env.step(np.full(2, t % 4))
        gaps = []
        for t in range(40):
            # The second cluster sends everything to one replica.
            _, reward, *_ = env.step(np.array([t % 4, 0]))
            gaps.append(reward[0] - reward[1])
        assert np.sum(gaps) > 5.0


def test_pitfall_07_throughput_is_no_part_of_the_reward() -> None:
    """In a stable cluster all routers complete as much; the reward tells them apart all the same."""
    env = small(scenarios=DEMO[1:], num_envs=2, group=2, episode_requests=400, load=(0.4, 0.4))
    env.reset(seed=0)
    total = np.zeros(2)
    for t in range(399):
        _, reward, *_ = env.step(np.array([t % 2, t % 4]))  # fast replicas only; all alike
        total += reward
    finished = env.clusters.state.routers["finished"].sum(1)
    assert finished[0] == pytest.approx(finished[1], rel=0.15)
    assert total[0] > 0.8 * total[1]


def test_groups_share_arrivals_and_differ_by_actions_alone() -> None:
    env = small()
    env.reset(seed=3)
    requests = env.clusters.state.requests
    for field in ("arrival", "prompt", "output"):
        rows = requests[field].reshape(2, 4, -1)
        assert (rows == rows[:, :1]).all()
        assert (rows[0, 0] != rows[1, 0]).any()
    observation, reward, *_ = env.step(np.zeros(8, np.int64))
    assert (reward.reshape(2, 4) == reward.reshape(2, 4)[:, :1]).all()
    assert (observation[0] == observation[1]).all()


def test_episodes_end_by_truncation_with_the_last_observation() -> None:
    env = small(episode_requests=10)
    env.reset(seed=0)
    arrivals = env.clusters.state.requests["arrival"].copy()
    for t in range(10):
        observation, _, terminated, truncated, info = env.step(np.zeros(8, np.int64))
        assert not terminated.any()
        assert truncated.all() == (t == 9)
        assert np.allclose(info["elapsed_s"], arrivals[:, t + 1] - arrivals[:, t])
    assert info["final_obs"].shape == observation.shape
    # The new episode begins empty, the last observation of the old one does not.
    assert (observation[..., 0] == 0).all()
    assert (info["final_obs"][..., 0].sum(-1) > 0).any()
    assert (env.clusters.state.requests["arrival"] != arrivals).any()


def test_same_seed_same_episodes_whenever_they_are_asked_for() -> None:
    def rewards(env: RouterVectorEnv, **reset) -> np.ndarray:
        env.reset(**reset)
        return np.array([env.step(np.arange(8) % 4)[1] for _ in range(20)])

    first, second = small(), small()
    once = rewards(first, seed=5)
    second.reset(seed=9)
    second.step(np.zeros(8, np.int64))
    np.testing.assert_array_equal(once, rewards(second, seed=5))
    assert (once != rewards(first)).any()
    np.testing.assert_array_equal(once, rewards(first, options={"episode": 0}))


def test_pitfall_03_load_changes_the_arrivals_themselves() -> None:
    gaps = []
    for load in (0.5, 0.9):
        env = small(scenarios=DEMO[:1], load=(load, load), episode_requests=500)
        env.reset(seed=0)
        gaps.append(np.diff(env.clusters.state.requests["arrival"], axis=1).mean())
    assert gaps[0] / gaps[1] == pytest.approx(0.9 / 0.5, rel=1e-6)


def test_each_scenario_is_trained_at_its_own_loads_unless_others_are_given() -> None:
    """`kv-pressure` is overloaded on purpose: a policy that has never seen such a load would thrash."""
    scenarios = [load_scenario("kv-pressure"), load_scenario("chat-outage")]
    env = RouterVectorEnv(scenarios, num_envs=64, group=1, episode_requests=4)
    for loads, scenario in ((env.loads[::2], scenarios[0]), (env.loads[1::2], scenarios[1])):
        low, high = min(scenario.loads), max(scenario.loads) + 0.05
        assert low <= loads.min() < low + 0.05 and high - 0.05 < loads.max() <= high
    env.configure(load=(0.3, 0.4))
    env.reset(seed=1)
    assert 0.3 <= env.loads.min() and env.loads.max() <= 0.4


@pytest.mark.parametrize(
    ("load", "low", "high"), [(None, 0.9, 1.15), (0.6, 0.6, 0.6), ((0.3, 0.4), 0.3, 0.4)]
)
def test_a_single_cluster_has_the_same_loads(
    load: float | tuple[float, float] | None, low: float, high: float
) -> None:
    env = RouterEnv("kv-pressure", load=load, episode_requests=4)
    assert low <= env._env.loads.item() <= high


def test_teacher_costs_know_who_is_fast() -> None:
    env = small(scenarios=DEMO[1:], favor=(0.2, 0.2), episode_requests=400)
    env.reset(seed=0)
    costs = env.teacher_costs()
    assert costs.shape == (8, 4)
    assert (costs[:, :2].max(1) < costs[:, 2:].min(1)).all()
    # Judged by TTFT, by E2E or by the tail alone, the same choices cost something else.
    alone = [env.teacher_costs(Weights(*row)) for row in np.eye(3)]
    assert not np.allclose(alone[0], alone[1])
    # Each cluster's own weights put the three together.
    np.testing.assert_allclose(costs, np.einsum("kj,jkr->kr", env.weights, np.array(alone)), rtol=1e-9)


def test_fewer_clusters_weigh_mostly_the_tail_if_asked_for() -> None:
    """The same draws, pushed towards the lower end of the range; arrivals and loads stay what they were."""
    even, pushed = (small(num_envs=64, favor=(0.2, 1.0), favor_power=power) for power in (1.0, 2.0))
    np.testing.assert_allclose((pushed.favor - 0.2) / 0.8, ((even.favor - 0.2) / 0.8) ** 2, rtol=1e-12)
    assert np.array_equal(even.loads, pushed.loads)
    assert np.array_equal(even.reset(seed=3)[0][..., 0], pushed.reset(seed=3)[0][..., 0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": 3}, "not a positive multiple"),
        ({"episode_requests": 0}, "at least 1"),
        ({"load": (0.0, 0.5)}, "load 0 is not between"),
        ({"load": (0.5, 1.5)}, "load 1.5 is not between"),
        ({"favor": (0.5, 2.0)}, r"favor 2 is not in \[0, 1\]"),
        ({"favor_power": 0.0}, "favor_power is 0: it must be a positive number"),
        ({"scenarios": [DEMO[0], load_scenario("chat-8")]}, "cannot be stepped together"),
    ],
)
def test_settings_that_do_not_fit_are_errors(changes: dict[str, object], message: str) -> None:
    with pytest.raises(FairleadError, match=message):
        small(**changes)


@pytest.mark.filterwarnings("ignore")
def test_stable_baselines3_trains_on_it_unchanged() -> None:
    from stable_baselines3 import PPO

    env = gymnasium.make("fairlead/Router-v0", scenario="chat-unequal", load=0.6, episode_requests=128)
    model = PPO("MlpPolicy", env, n_steps=128, batch_size=64, n_epochs=2, seed=0, device="cpu")
    before = model.policy.state_dict()["action_net.weight"].clone()
    model.learn(512)
    assert (model.policy.state_dict()["action_net.weight"] != before).any()
    observation, _ = env.reset(seed=1)
    action, _ = model.predict(observation, deterministic=True)
    assert env.action_space.contains(int(action))
