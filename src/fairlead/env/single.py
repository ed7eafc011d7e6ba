"""The same environment for one cluster, for libraries that expect a plain `gymnasium.Env`."""

from typing import Any

import gymnasium
import numpy as np
import numpy.typing as npt

from fairlead.env.reward_config import HybridReward, SafetyConfig, SojournReward
from fairlead.env.vector import RouterVectorEnv
from fairlead.view.preference import DEFAULT_FAVOR
from fairlead.workload.scenario import Scenario
from fairlead.workload.suites import load_variant


class RouterEnv(gymnasium.Env[npt.NDArray[np.float32], np.int64]):
    """Route every arriving request of one simulated cluster to one of its R replicas.

    STATE, ACTIONS, REWARD, EPISODE and REFERENCE: as in `fairlead.env.vector.RouterVectorEnv`.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(
        self,
        scenario: str | Scenario = "chat-equal",
        *,
        load: float | tuple[float, float] | None = None,
        favor: float = DEFAULT_FAVOR,
        episode_requests: int = 1024,
        reward: SojournReward | HybridReward | None = None,
        safety: SafetyConfig | None = None,
        seed: int = 0,
    ) -> None:
        """Builds the cluster of a scenario (a name, a file or an object).

        `load` is a number or a range, as fractions of capacity; by default the range of the scenario's own.

        Raises:
            FairleadError: for an unknown scenario, load or favor.
        """
        chosen = scenario if isinstance(scenario, Scenario) else load_variant(scenario)
        self._env = RouterVectorEnv(
            [chosen],
            num_envs=1,
            group=1,
            episode_requests=episode_requests,
            load=(load, load) if isinstance(load, float | int) else load,
            favor=(favor, favor),
            reward=reward,
            safety=safety,
            seed=seed,
        )
        self.observation_space = self._env.single_observation_space
        self.action_space = self._env.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Start an episode with new arrivals; with a `seed` the first one of that seed."""
        super().reset(seed=seed)
        observation, _ = self._env.reset(seed=seed, options=options)
        return observation[0], {"elapsed_s": 0.0}

    def step(
        self, action: np.int64 | int
    ) -> tuple[npt.NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Route the request at hand; go on to the next arrival."""
        observation, reward, terminated, truncated, info = self._env.step(np.array([action], np.int64))
        shown = info["final_obs"] if truncated[0] or terminated[0] else observation
        return (
            shown[0],
            float(reward[0]),
            bool(terminated[0]),
            bool(truncated[0]),
            {"elapsed_s": float(info["elapsed_s"][0])},
        )
