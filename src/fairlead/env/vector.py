"""The native vector environment: K clusters stepped by compiled code, in groups that share arrivals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from fairlead import rng
from fairlead.env.hybrid import Objectives
from fairlead.env.interval import Watcher
from fairlead.env.reward_config import HybridReward, SafetyConfig, SojournReward
from fairlead.env.rewards import Shadow, component_names, make_reward, shadow_router
from fairlead.env.safety import MONITORS, Monitors
from fairlead.env.statistics import PERFORMANCE, Performance, RewardLog
from fairlead.env.tails import Tails
from fairlead.errors import FairleadError
from fairlead.simulator import forecast
from fairlead.simulator.capacity import capacity_rps
from fairlead.simulator.cluster import Clusters
from fairlead.simulator.fleet import build_fleet
from fairlead.view.features import NUM_FEATURES, features_batch
from fairlead.view.preference import DEFAULT_FAVOR, Weights, check_favor, weights_of
from fairlead.view.privilege import EVERYTHING, NOTHING
from fairlead.view.schema import AVAILABLE
from fairlead.workload.requests import Requests
from fairlead.workload.scenario import Scenario, check_load, generate
from fairlead.workload.suites import load_variant

Range = tuple[float, float]
Floats = npt.NDArray[np.float64]

ABOVE_HIGHEST_LOAD = 0.05
"""By how much the loads to train on reach beyond the highest of a scenario's own."""

OBSERVATION_BOUND = 1e6
"""Bound of the observation space: generous, nothing is clipped to it."""


def own_loads(scenario: Scenario) -> Range:
    """The range of loads to train a scenario on, as fractions of capacity."""
    return min(scenario.loads), max(scenario.loads) + ABOVE_HIGHEST_LOAD


class RouterVectorEnv(VectorEnv[npt.NDArray[np.float32], npt.NDArray[np.int64], Any]):
    """Routes every arriving request of K simulated clusters to one of their R replicas.

    STATE: the features of the view (`fairlead.view.features`), (R, F) float32 per cluster.
    ACTIONS: a replica, in [0, R). Every request is served; there is no drop action. A replica that is not
        available (the feature says so) refuses the connection: the next one that is available takes over.
    REWARD: `sojourn` (`fairlead.env.rewards`), minus weighted request-seconds between two arrivals, or
        `hybrid`.
    EPISODE: `episode_requests` decisions from an empty cluster, then truncated; the next episode has new
        arrivals. Terminated only if `safety.end_episode` is set and a limit was crossed. Autoreset mode
        SAME_STEP: the step that ends it returns the first observation of the next episode, and the last
        one of the old in `info["final_obs"]`.
    REFERENCE: Park's load balancing (Mao et al., NeurIPS 2019) for the reward; input-dependent baselines
        (Mao et al., ICLR 2019) for the groups.

    Neighbouring clusters form groups of `group` that see the same arrivals, so that their returns differ
    by routing alone. Each group draws scenario (in turn), load and favor anew for each episode.

    `info` has `elapsed_s` (K,): seconds from the decision taken to the next one.
    All arrays returned are fresh. `take_statistics` tells what happened since it was last called.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        scenarios: Sequence[str | Scenario] | None = None,
        *,
        scenario: str | Scenario | None = None,
        num_envs: int = 64,
        group: int = 8,
        episode_requests: int = 1024,
        load: Range | None = None,
        favor: Range = (DEFAULT_FAVOR, DEFAULT_FAVOR),
        favor_power: float = 1.0,
        reward: SojournReward | HybridReward | None = None,
        safety: SafetyConfig | None = None,
        seed: int = 0,
        split: str = "train",
    ) -> None:
        """Builds the clusters.

        Args:
            scenarios: names, files or objects, dealt to the groups in turn; all with the same number of
                replicas.
            scenario: a single one instead, as for the plain environment; `chat-equal` if neither is given.
            num_envs: K, a multiple of `group`.
            group: clusters that share their arrivals.
            episode_requests: decisions in an episode.
            load: range from which a group's load is drawn, as fractions of capacity; by default from the
                lowest of its scenario's own loads to a little above the highest.
            favor: range from which a group's point on the dial is drawn.
            favor_power: of the uniform number that says how far into that range: above 1, fewer groups
                are near its upper end.
            reward: which reward; `sojourn` by default.
            safety: the limits that are watched.
            seed: of everything random here, until `reset` is given another.
            split: which random streams the requests come from.

        Raises:
            FairleadError: for an unknown scenario, load or favor, and for sizes that do not fit together.
        """
        if scenarios is not None and scenario is not None:
            raise FairleadError("scenario and scenarios are both given: give one of them")
        if scenarios is None:
            scenarios = ["chat-equal" if scenario is None else scenario]
        chosen = tuple(each if isinstance(each, Scenario) else load_variant(each) for each in scenarios)
        sizes = sorted({s.num_replicas for s in chosen})
        if len(sizes) != 1:
            raise FairleadError(
                f"scenarios with {sizes} replicas cannot be stepped together: give those of one size"
            )
        if group < 1 or num_envs < 1 or num_envs % group:
            raise FairleadError(
                f"num_envs {num_envs} is not a positive multiple of the group size {group}: clusters come in "
                f"groups that share their arrivals; give a multiple of {group}, or another group, such as "
                "group=1"
            )
        if episode_requests < 1:
            raise FairleadError(f"episode_requests is {episode_requests}: at least 1 is needed")
        for bound in load or ():
            check_load(bound)
        for bound in favor:
            check_favor(bound)
        if not 0.0 < favor_power < np.inf:
            raise FairleadError(f"favor_power is {favor_power:g}: it must be a positive number")
        self.num_envs, self.group, self.episode_requests = num_envs, group, episode_requests
        self.scenarios, self.split = chosen, split
        self.group_shares: Mapping[str, float] | None = None
        self.load_range, self.favor_range, self.favor_power = load, favor, favor_power
        self.reward_config, self.safety = reward or SojournReward(), safety or SafetyConfig()
        self._shadow_router = shadow_router(self.reward_config)
        self.single_observation_space = spaces.Box(
            -OBSERVATION_BOUND, OBSERVATION_BOUND, (sizes[0], NUM_FEATURES), np.float32
        )
        self.single_action_space = spaces.Discrete(sizes[0])
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._seed, self._episode = seed, 0
        self.favor: Floats = np.zeros(num_envs)
        self.loads: Floats = np.zeros(num_envs)
        self._reward_log = RewardLog(component_names(self.reward_config))
        self._performance = Performance()
        self._crossings = np.zeros(len(MONITORS))
        self._deal()
        self._begin_episode()

    def _deal(self) -> None:
        """Which scenario each group runs, in turn or by shares; the clusters are built anew."""
        groups, names = self.num_envs // self.group, [s.name for s in self.scenarios]
        turns = [self.scenarios[g % len(self.scenarios)] for g in range(groups)]
        if self.group_shares is not None:
            unknown = sorted(set(self.group_shares) - set(names))
            if unknown:
                raise FairleadError(f"the curriculum names {unknown[0]}, which is not trained on: {names}")
            weights = np.array([self.group_shares.get(name, 0.0) for name in names])
            # Each group takes the scenario that is most behind its share.
            dealt = np.zeros(len(names))
            for g in range(groups):
                chosen = int(np.argmax(weights / weights.sum() * (g + 1) - dealt))
                dealt[chosen] += 1
                turns[g] = self.scenarios[chosen]
        self._dealt = turns
        self._capacity = [capacity_rps(s) for s in self._dealt]
        self._fleets = [build_fleet(s) for s in self._dealt]
        self._slo_ttft_s = np.repeat([s.slo.ttft_s for s in self._dealt], self.group)
        self._slo_tpot_s = np.repeat([s.slo.tpot_s for s in self._dealt], self.group)
        self._new = True
        self._tails = Tails(self._fleets)
        self._shadow_clusters: Clusters | None = None

    @property
    def episode(self) -> int:
        """The number of the episode that is being played, counted from 1."""
        return self._episode

    @property
    def scenario_names(self) -> list[str]:
        """Of each cluster."""
        return [s.name for s in self._dealt for _ in range(self.group)]

    def configure(
        self,
        *,
        load: Range | None = None,
        scenarios: Mapping[str, float] | None = None,
        reward: SojournReward | HybridReward | None = None,
    ) -> None:
        """Other loads, shares of scenarios or reward from the next `reset` on.

        None stands for the scenarios' own loads, scenarios in turn, and the same reward.

        Raises:
            FairleadError: for a load that cannot be, a scenario that is not here, another kind of reward.
        """
        for bound in load or ():
            check_load(bound)
        if reward is not None and reward.kind != self.reward_config.kind:
            raise FairleadError(f"the reward cannot change from {self.reward_config.kind} to {reward.kind}")
        self.load_range = load
        if reward is not None and reward != self.reward_config:
            self.reward_config, self._shadow_router = reward, shadow_router(reward)
        if scenarios != self.group_shares:
            self.group_shares = scenarios
            self._deal()

    def _draw(self, name: str, bounds: Sequence[Range], power: float = 1.0) -> Floats:
        """A number for each group, between its bounds (power 1: uniform), repeated for its clusters: (K,)."""
        low, high = np.array(bounds).T
        parts = rng.stream(self._seed, self.split, "env", name, self._episode).random(len(low)) ** power
        return np.repeat(low + (high - low) * parts, self.group)

    def _requests(self, g: int) -> Requests:
        # One more than is routed, because the last observation of an episode is that of the next decision.
        # Where requests are lost and decided anew, an episode ends before the last of them have arrived.
        seed = int(rng.word(self._seed, "episode", self._episode, g))
        rate = float(self.loads[g * self.group]) * self._capacity[g]
        return generate(
            self._dealt[g], requests=self.episode_requests + 1, rate=rate, seed=seed, split=self.split
        )

    def _begin_episode(self) -> None:
        self.loads = self._draw("load", [self.load_range or own_loads(s) for s in self._dealt])
        self.favor = self._draw("favor", [self.favor_range] * len(self._dealt), self.favor_power)
        requests = [self._requests(g) for g in range(len(self._dealt))]
        if self._new:
            self._new = False
            self.clusters = Clusters(self._fleets, requests, group=self.group, seed=self._seed)
            self._scratch: Any = None
        else:
            self.clusters.load(requests, self._seed)
        tails = self._tails.begin(requests, self._seed)
        self.clusters.state.clusters["tail_begins"] = np.repeat(tails, self.group)
        self.weights = np.array([weights_of(float(f)) for f in self.favor])
        self._watcher = Watcher(self.clusters)
        self._monitors = Monitors(self.safety, self._slo_ttft_s)
        objectives = Objectives(self.weights, self._slo_ttft_s, self._slo_tpot_s)
        self._reward = make_reward(
            self.reward_config, objectives, self._reward_log, self._shadow(requests, tails), self.group
        )
        self._decisions = 0
        self._episode += 1

    def _shadow(self, requests: list[Requests], tails: Floats) -> Shadow | None:
        """One cluster for each group, with its arrivals, under the reward's baseline router."""
        if self._shadow_router is None:
            return None
        if self._shadow_clusters is None:
            self._shadow_clusters = Clusters(self._fleets, requests, group=1, seed=self._seed)
        else:
            self._shadow_clusters.load(requests, self._seed)
        self._shadow_clusters.state.clusters["tail_begins"] = tails
        return Shadow(self._shadow_clusters, self._shadow_router, self._seed)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start new episodes; with a `seed` from the first one of that seed.

        `options={"episode": n}` starts at the n-th episode of the seed: an episode is a pure function
        of seed and number, so that training can be resumed anywhere.
        """
        if isinstance(seed, list):
            seed = seed[0]
        if seed is not None:
            self._seed, self._episode = int(seed), 0
        if options and "episode" in options:
            self._episode = int(options["episode"])
        self._begin_episode()
        return self._observe(), {"elapsed_s": np.zeros(self.num_envs)}

    def _observe(self) -> npt.NDArray[np.float32]:
        return features_batch(self.clusters.observe(), self.favor)

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.float32], Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Route one request in each cluster and go on to the next decision."""
        before = self.clusters.state.clusters["now"].copy()
        actions = self._connected(np.ascontiguousarray(actions, np.int64))
        self.clusters.route(actions)
        self._reward.routed()
        observation = self._observe()
        elapsed = self.clusters.state.clusters["now"] - before
        reward, terminated = self._judge(actions, elapsed)
        info: dict[str, Any] = {"elapsed_s": elapsed}
        self._decisions += 1
        ended = bool(self._decisions == self.episode_requests or terminated.any())
        if ended:
            info["final_obs"] = observation
            self._begin_episode()
            observation = self._observe()
        return observation, reward, terminated, ended & ~terminated, info

    def _connected(self, actions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The actions, each turned to the next available replica, as a refused connection would be."""
        available = self.clusters.view.replicas[..., AVAILABLE] != 0.0
        if available.all() or actions.min() < 0 or actions.max() >= self.clusters.R:
            return actions
        rows = np.arange(len(actions))[:, None]
        in_turn = (actions[:, None] + np.arange(self.clusters.R)) % self.clusters.R
        first = available[rows, in_turn].argmax(1)
        return np.ascontiguousarray(in_turn[rows[:, 0], first])

    def _judge(
        self, actions: npt.NDArray[np.int64], elapsed_s: Floats
    ) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Reward of the interval, and which clusters have crossed a limit that ends the episode."""
        replicas = self.clusters.state.replicas
        shape = (self.num_envs, self.clusters.R)
        interval = self._watcher.interval(actions, elapsed_s)
        reward = self._reward(self.clusters, interval)
        crossed = self._monitors.crossed(interval, replicas["preemptions"].reshape(shape).sum(1))
        self._crossings += crossed.sum(1)
        self._performance.add(interval, replicas["running"])
        unsafe: npt.NDArray[np.bool_] = np.logical_or.reduce(crossed)
        if self.safety.penalty > 0.0:
            reward = reward - self.safety.penalty * unsafe
        return reward, unsafe if self.safety.end_episode else np.zeros_like(unsafe)

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The keys of `take_statistics`."""
        rewards = RewardLog.names(component_names(self.reward_config))
        return (
            *(f"reward/{name}" for name in rewards),
            *(f"performance/{name}" for name in PERFORMANCE),
            *(f"safety/{name}" for name in MONITORS),
        )

    def take_statistics(self) -> tuple[dict[str, float], Floats]:
        """What happened since the last call: numbers by name, and the total rewards before any clip.

        `reward/...` (`RewardLog`), `performance/...` (`PERFORMANCE`), and `safety/...`: how often each limit
        was crossed.
        """
        totals = self._reward_log.totals()
        numbers = [
            *self._reward_log.take().values(),
            *self._performance.take().values(),
            *self._crossings.tolist(),
        ]
        self._crossings = np.zeros(len(MONITORS))
        return dict(zip(self.statistic_names, numbers, strict=True)), totals

    def teacher_costs(self, weights: Weights | None = None, *, privileged: bool = False) -> Floats:
        """Lookahead's added cost of each choice for the requests at hand, (K, R).

        Without weights each cluster is judged by its own point on the dial. A privileged teacher sees the
        true state of the simulator: speeds, lengths, and what other routers have sent. A replica that is not
        available costs a little more than the worst of the others.
        """
        if self._scratch is None:
            self._scratch = forecast.scratch_for(self.clusters.state)
        judged_by = self.weights if weights is None else np.tile(weights, (self.num_envs, 1))
        out = np.empty((self.num_envs, self.clusters.R))
        knows = EVERYTHING if privileged else NOTHING
        forecast.added_costs_all(self.clusters.state, self._scratch, judged_by, knows, out)
        return dear_where_away(out)


def dear_where_away(costs: Floats) -> Floats:
    """Costs (K, R), infinite for replicas that are away, with a little above the worst of the others instead.

    So they are never chosen, and do not decide what a mean cost is.
    """
    away = np.isinf(costs)
    if not away.any():
        return costs
    worst = np.where(away, -np.inf, costs).max(1, keepdims=True) + 1.0
    dear: Floats = np.where(away, worst, costs)
    return dear
