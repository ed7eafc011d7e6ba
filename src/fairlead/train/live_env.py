"""One cluster of live servers as an environment: real requests, real time, the view of a real gateway.

A gateway and a load client run on an event loop in a thread of their own. The gateway's router hands each
view to `step` and waits for the action, a few milliseconds during which that loop stands still.
"""

import asyncio
import concurrent.futures
import math
import queue
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt
import uvloop
from gymnasium import spaces

from fairlead import rng
from fairlead.env.vector import OBSERVATION_BOUND
from fairlead.errors import FairleadError
from fairlead.evaluate.live import replay
from fairlead.evaluate.live_gateway import Bounds, private_gateway, wait_until_idle
from fairlead.evaluate.prompts import TokenIds
from fairlead.serve.decisions import FAIL, Routers
from fairlead.serve.server import Server
from fairlead.serve.settings import GatewaySettings, Policy
from fairlead.train.rollout import Enough, Observation
from fairlead.view.features import NUM_FEATURES, features_batch
from fairlead.view.preference import weights_of
from fairlead.view.schema import IN_FLIGHT, TTFT_TAIL_S, View
from fairlead.view.tail import TAIL_PRIOR_S, TAIL_SHARE, excess
from fairlead.workload.requests import Requests

Floats = npt.NDArray[np.float64]
T = TypeVar("T")

_ANSWER_S = 60.0  # for an action: far more than it takes
_LOOK_S = 0.1  # between two looks at whether something has gone wrong
_START_S = 30.0
_BOTH = np.array((1.0, 1.0, 0.0))  # without a first token, and in the system
_OF_TAIL = np.array((0.0, 0.0, 1.0))
_STATISTICS = ("requests", "ttft_mean_s", "e2e_mean_s")


class Waiting:
    """Request-seconds so far, as the clients feel them; told by the load client as things happen.

    The integrals of the number of requests without a first token and of those without a complete answer. Over
    a whole run they are the sums of all TTFT and of all E2E latencies (Little's law). Third comes what they
    cost by the tail (`view.tail.tail_cost`), charged while requests wait.
    """

    def __init__(self) -> None:
        """Nothing has been sent."""
        self.areas: Floats = np.zeros(3)
        """Of waiting for the first token, of being in the system, and of the tail: request-seconds."""
        self.tail_s = TAIL_PRIOR_S
        """Where the tail of TTFTs begins, as of the gateway's last view."""
        self.finished: list[tuple[float, float]] = []
        """TTFT and E2E latency, s, of answers that are complete."""
        self.error = ""
        """What went wrong first."""
        self._counts = np.zeros(3)
        self._awaiting: list[float] = []  # when those without a first token were due
        self._at_s = time.perf_counter()

    def advance(self) -> float:
        """Let time pass until now, which is returned."""
        now_s = time.perf_counter()
        late_s = sum(self._excess(due_s, now_s) - self._excess(due_s, self._at_s) for due_s in self._awaiting)
        self.areas = self.areas + self._counts * (now_s - self._at_s) + late_s * _OF_TAIL
        self._at_s = now_s
        return now_s

    def came(self, due_s: float) -> None:
        """A request that was due at `due_s` is sent: it has waited since then."""
        now_s = self.advance()
        self.areas = self.areas + (now_s - due_s) * _BOTH + self._excess(due_s, now_s) * _OF_TAIL
        self._counts += _BOTH
        self._awaiting.append(due_s)

    def first(self, due_s: float) -> None:
        """The first token of the answer to a request that was due at `due_s` has come."""
        self.advance()
        self._counts[0] -= 1.0
        self._awaiting.remove(due_s)
        self.areas = self.areas + TAIL_SHARE * self.tail_s * _OF_TAIL

    def ended(self, due_s: float, first_s: float, finish_s: float, error: str) -> None:
        """An answer is complete, or will never be."""
        self.advance()
        self._counts[1] -= 1.0
        if math.isnan(first_s):
            self._counts[0] -= 1.0
            self._awaiting.remove(due_s)
        if error:
            self.error = self.error or error
        else:
            self.finished.append((first_s - due_s, finish_s - due_s))

    def _excess(self, due_s: float, until_s: float) -> float:
        """How much longer than the tail begins a request has waited at a time, s."""
        return excess(until_s - due_s, self.tail_s)


class _Asked(NamedTuple):
    """A decision that is due."""

    features: Observation
    """(1, R, F)."""
    at_s: float
    areas: Floats
    """Request-seconds up to it."""
    last: bool
    """The episode ends here: nobody waits for an action."""


class _Asking:
    """The gateway's router while training: asks for every decision, and waits for the answer."""

    name = "training"

    def __init__(self, backends: int) -> None:
        """For views of all `backends`."""
        self.backends = backends
        self.asked: queue.Queue[_Asked] = queue.Queue()
        self.actions: queue.Queue[int] = queue.Queue()
        self.closed = False
        self.waiting = Waiting()
        self.error = ""
        self._left = 0
        self._favor: Floats = np.zeros(1)

    def begin(self, decisions: int, favor: float) -> None:
        """An episode of `decisions` to be asked for, and a last one that only ends it."""
        self._left, self._favor = decisions, np.array([favor])
        self.waiting = Waiting()

    def reset(self, clusters: int, replicas: int, seed: int) -> None:
        """Nothing is remembered."""

    def route(self, view: View) -> npt.NDArray[np.int64]:
        """The action, from the thread that learns."""
        count = view.replicas.shape[1]
        if count != self.backends:
            self.error = (
                f"a decision was due with {count} of {self.backends} servers: one was out, or a request was "
                "sent again to another"
            )
            raise FairleadError(self.error)
        last = self._left <= 0
        self._left -= 1
        at_s = self.waiting.advance()
        self.asked.put(_Asked(features_batch(view, self._favor), at_s, self.waiting.areas, last))
        self.waiting.tail_s = float(view.request[0, TTFT_TAIL_S])
        if last:
            fewest: npt.NDArray[np.int64] = view.replicas[:, :, IN_FLIGHT].argmin(1)
            return fewest
        end_s = at_s + _ANSWER_S
        while not self.closed and time.perf_counter() < end_s:
            try:
                return np.array([self.actions.get(timeout=_LOOK_S)])
            except queue.Empty:
                continue
        raise FairleadError("training has ended" if self.closed else "training gave no action")


@dataclass(frozen=True)
class LivePlan:
    """What an environment sends, and how far it may go."""

    requests: Callable[[int, int], Requests]
    """(number, seed) -> so many requests of an episode."""
    steps: int
    """Decisions in an episode."""
    favor: tuple[float, float]
    """Range of the dial, drawn anew for each episode."""
    favor_power: float
    """Of the uniform number that says how far into that range."""
    bounds: Bounds
    reserve_s: float = 0.0
    """Of the time allowed, what is to be left when training ends."""
    speed: float = 1.0
    """Of the servers' time (an emulator's)."""


class LiveEnv:
    """Routes real requests to one of R live servers (`fairlead.train.rollout.Env`, K = 1).

    STATE: the features of the gateway's view, (R, F) float32: the same function of the same columns as in
        simulation. R is the number of servers.
    ACTIONS: a server, in [0, R).
    REWARD: `sojourn`: minus weighted request-seconds until the next arrival, measured at the load client.
    EPISODE: `steps` decisions from idle servers, then truncated. The next one begins with `reset` (autoreset
        mode DISABLED); until then the answers under way come to their end, whatever else is done.

    Whatever a request's failure, a server that is out or a retry means for the comparison of decisions, it is
    not what is to be learned: it ends training with an error. `Enough` is raised when the time is up.
    A context manager: leaving it cuts off what is in flight.
    """

    num_envs = 1
    group = 1

    def __init__(self, settings: GatewaySettings, model: str, plan: LivePlan) -> None:
        """For the backends of `settings`; nothing is started yet.

        Raises:
            FairleadError: for fewer than two servers, or one with a limit of its own.
        """
        replicas = len(settings.backends)
        if replicas < 2:
            raise FairleadError(f"there is nothing to route among {replicas} server(s): name at least two")
        limited = [backend.label for backend in settings.backends if backend.max_in_flight is not None]
        if limited:
            raise FairleadError(
                f"{limited[0]} has max_in_flight: a server that is full would be missing from the view; "
                "leave it out for training"
            )
        shape = (replicas, NUM_FEATURES)
        self.single_observation_space = spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, shape, np.float32)
        self.single_action_space = spaces.Discrete(replicas)
        # Nobody else's decisions may count as the policy's own, and it takes as long as it takes.
        policy = Policy(router="lor", on_policy_error=FAIL, deadline=2 * _ANSWER_S)
        self._settings = settings.model_copy(update={"policy": policy})
        self._model, self._plan = model, plan
        self._router = _Asking(replicas)
        self._episode: concurrent.futures.Future[None] | None = None
        self._before: _Asked | None = None
        self._favor_weights: Floats = np.zeros(3)
        self._ends_at = time.monotonic() + 60.0 * plan.bounds.run_minutes - plan.reserve_s
        self._reward_total = np.zeros(0)
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._server: Server | None = None
        self._gateway = private_gateway(self._settings)
        self.sent = 0
        """Requests so far."""

    def __enter__(self) -> Self:
        """Start the gateway."""
        self._thread.start()
        try:
            self._server = self._run(self._gateway.__aenter__(), _START_S)
            self._server.gateway.decider.install(self._settings.policy, Routers(self._router, None, None))
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        where: TracebackType | None,
    ) -> None:
        """End what is in flight, and the gateway: clients leave, so the servers stop generating."""
        self._router.closed = True
        try:
            if self._episode is not None and not self._episode.done():
                self._episode.cancel()
                concurrent.futures.wait([self._episode], _START_S)
            self._run(self._close(), _START_S)
        finally:
            self._stop()

    async def _close(self) -> None:
        server = self._server
        assert server is not None
        end = time.monotonic() + 1.0
        while server.gateway.exchanges and time.monotonic() < end:  # cancellations are on their way
            await asyncio.sleep(0.01)
        await self._gateway.__aexit__(None, None, None)

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_START_S)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, T], timeout_s: float) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout_s)

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Wait for the answers of the episode before, then begin the one that `seed` determines.

        Raises:
            FairleadError: if a request failed, a server cannot be used or does not become idle.
            Enough: if the time that is left is too short for another episode's arrivals.
        """
        plan = self._plan
        if self._episode is not None:
            self._wait_for_answers(self._episode)
        requests = plan.requests(plan.steps + 1, seed)
        lasts_s = float(requests.arrival_s[-1]) / plan.speed
        self._check_time(lasts_s)
        low, high = plan.favor
        part = rng.stream(seed, "train", "live", "favor").random() ** plan.favor_power
        favor = low + (high - low) * float(part)
        self._favor_weights = np.array(weights_of(favor))
        self._router.begin(plan.steps, favor)
        self._episode = asyncio.run_coroutine_threadsafe(self._serve(requests), self._loop)
        self._before = self._next()
        return self._before.features, {"elapsed_s": np.zeros(1)}

    async def _serve(self, requests: Requests) -> None:
        """One episode: idle servers, then every request to its end."""
        server = self._server
        assert server is not None
        await wait_until_idle(server, self._plan.bounds.drain_s, "training")
        await replay(
            f"http://127.0.0.1:{server.port}",
            requests,
            model=self._model,
            prompts=TokenIds(requests, f"training, {time.time_ns()}"),
            speed=self._plan.speed,
            timeout_s=self._plan.bounds.request_s,
            watch=self._router.waiting,
        )

    def step(
        self, actions: npt.NDArray[np.int64]
    ) -> tuple[Observation, Floats, npt.NDArray[np.bool_], npt.NDArray[np.bool_], dict[str, Any]]:
        """Route the request at hand and wait for the next one.

        Raises:
            FairleadError: if a request failed or a server is out.
            Enough: if the time is up.
        """
        before = self._before
        assert before is not None and not before.last, "an episode begins with reset"
        self.sent += 1
        self._router.actions.put(int(actions[0]))
        now = self._before = self._next()
        speed = self._plan.speed
        reward = -speed * np.array([self._favor_weights @ (now.areas - before.areas)])
        self._reward_total = np.append(self._reward_total, reward)
        info: dict[str, Any] = {"elapsed_s": np.array([speed * (now.at_s - before.at_s)])}
        if now.last:
            self.sent += 1
            info["final_obs"] = now.features
        return now.features, reward, np.zeros(1, np.bool_), np.array([now.last]), info

    def _next(self) -> _Asked:
        """The next decision that is due."""
        while True:
            if time.monotonic() > self._ends_at:
                raise self._enough()
            try:
                return self._router.asked.get(timeout=_LOOK_S)
            except queue.Empty:
                self._check()

    def _check(self) -> None:
        """Raise what has gone wrong, if something has."""
        trouble = self._router.error or self._router.waiting.error
        if trouble:
            raise FairleadError(f"training on live servers was ended, because a request failed: {trouble}")
        if self._episode is not None and self._episode.done():
            self._episode.result()

    def _wait_for_answers(self, episode: "concurrent.futures.Future[None]") -> None:
        # Each request has a timeout of its own.
        episode.result(self._plan.bounds.request_s + _START_S)
        self._check()

    def _check_time(self, lasts_s: float) -> None:
        if time.monotonic() + lasts_s > self._ends_at:
            raise self._enough()

    def _enough(self) -> Enough:
        minutes = self._plan.bounds.run_minutes
        kept = (
            f", {self._plan.reserve_s:.0f} s of them kept for the comparison" if self._plan.reserve_s else ""
        )
        return Enough(f"the {minutes:g} minutes are over{kept}")

    @property
    def statistic_names(self) -> tuple[str, ...]:
        """The keys of `take_statistics`."""
        return tuple(f"live/{name}" for name in _STATISTICS)

    def take_statistics(self) -> tuple[dict[str, float], Floats]:
        """What the requests of the episode felt, and the rewards since the last call.

        After its last decision this waits for all answers: those that come first are not like the others.
        """
        if self._before is not None and self._before.last and self._episode is not None:
            self._wait_for_answers(self._episode)
        finished = np.array(self._router.waiting.finished or [(np.nan, np.nan)]) * self._plan.speed
        numbers = [float(len(self._router.waiting.finished)), *(float(each) for each in finished.mean(0))]
        totals, self._reward_total = self._reward_total, np.zeros(0)
        return dict(zip(self.statistic_names, numbers, strict=True)), totals
