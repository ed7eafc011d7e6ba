"""A curriculum: stages of PPO that change the arrivals, the scenarios or the reward themselves."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from fairlead.env.reward_config import RewardConfig
from fairlead.errors import FairleadError
from fairlead.section import Section, invalid
from fairlead.workload.scenario import check_load

Share = Annotated[float, Field(ge=0, le=1)]


def _sensible(load: float) -> float:
    try:
        return check_load(load)
    except FairleadError as error:
        raise invalid(str(error)) from None


Load = Annotated[float, AfterValidator(_sensible)]
"""A fraction of capacity that makes sense (`workload.scenario.check_load`)."""


class Stage(Section):
    """What holds from a point of PPO on, until the next stage begins.

    What is left out stays as in `environment`.
    """

    begins: Share
    """Progress of PPO (0 to 1) at which it begins; the switch comes with the next fresh episodes."""
    load: tuple[Load, Load] | None = None
    """Range of the load, as fractions of capacity."""
    glide: bool = False
    """Whether the load moves in a straight line to that of the next stage, instead of jumping."""
    scenarios: dict[str, Annotated[float, Field(gt=0)]] | None = None
    """Shares by scenario of the groups of clusters, among those of one number of replicas: how many groups
    each number has is fixed. Scenarios left out rest, but of each number one has to be named."""
    reward: RewardConfig | None = None
    """The reward, of the same kind as `environment.reward`."""


class Setting(NamedTuple):
    """What a curriculum says about one episode."""

    stage: int
    """0, 1, ...; -1 before the first stage, or without a curriculum."""
    load: tuple[float, float] | None
    scenarios: dict[str, float] | None
    reward: Any

    @property
    def bounds(self) -> tuple[float, float]:
        """The range of loads, NaN where each scenario has its own."""
        return self.load or (math.nan, math.nan)


def check_stages(stages: Sequence[Stage], load: tuple[float, float] | None, reward: Any) -> None:
    """Refuse stages that contradict each other.

    Raises:
        PydanticCustomError: if they run backwards, a load glides from or to loads that are not given or to
            no stage at all, or the kind of reward changes.
    """
    begins = [stage.begins for stage in stages]
    if begins != sorted(set(begins)):
        raise invalid(f"the curriculum runs backwards: its stages begin at {begins}")
    if stages and stages[-1].glide:
        raise invalid(
            f"the load of the stage at {stages[-1].begins:g} glides to that of the next one, and there is "
            "none: leave glide out, or name the stage that it glides to"
        )
    for stage, after in itertools.pairwise(stages):
        if stage.glide and load is None and None in (stage.load, after.load):
            raise invalid(
                f"the load of the stage at {stage.begins:g} glides to that of the next one: both must name "
                "theirs, because environment.load, which they would have otherwise, is not set"
            )
    for stage in stages:
        if stage.reward is not None and stage.reward.kind != reward.kind:
            raise invalid(
                f"the stage at {stage.begins:g} has a {stage.reward.kind} reward, the run a {reward.kind} "
                "one: the kind cannot change within a run"
            )


def setting_at(
    stages: Sequence[Stage], progress: float, load: tuple[float, float] | None, reward: Any
) -> Setting:
    """What holds at `progress` of PPO; `load` and `reward` are those of the run."""
    now = -1
    for i, stage in enumerate(stages):
        if stage.begins <= progress:
            now = i
    if now < 0:
        return Setting(-1, load, None, reward)
    stage = stages[now]
    here = stage.load or load
    if stage.glide and now + 1 < len(stages):
        after = stages[now + 1]
        there, span = after.load or load, after.begins - stage.begins
        share = (progress - stage.begins) / span
        assert here is not None and there is not None  # `check_stages`
        here = (here[0] + share * (there[0] - here[0]), here[1] + share * (there[1] - here[1]))
    return Setting(now, here, stage.scenarios, stage.reward or reward)
