"""The clock of the emulator on a loop whose time is under control."""

import asyncio
import math

from fairlead.emulate.clock import LoopClock


class Loop:
    """Remembers what is to be called, and when."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def call_later(self, delay: float, callback: object) -> None:
        self.delays.append(delay)


def test_time_runs_speed_times_as_fast_and_timers_are_never_early(monkeypatch):
    wall = 100.0
    monkeypatch.setattr("fairlead.emulate.clock.time.perf_counter", lambda: wall)
    loop = Loop()
    clock = LoopClock(loop, speed=4.0)  # type: ignore[arg-type]
    wall = 102.5
    assert clock.now() == 10.0
    clock.call_at(11.001, lambda: None)
    clock.call_at(9.0, lambda: None)
    assert loop.delays == [0.251, 0.0]
    assert all(math.isclose(delay * 1000, round(delay * 1000)) for delay in loop.delays)


def test_a_real_timer_fires():
    async def main() -> float:
        clock = LoopClock(asyncio.get_running_loop(), speed=10.0)
        done = asyncio.Event()
        clock.call_at(0.05, done.set)
        await done.wait()
        return clock.now()

    assert asyncio.run(main()) >= 0.05
