"""Runs a command line inside the test's own process."""

from collections.abc import Callable
from typing import NamedTuple

import pytest

from fairlead.cli import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def fairlead(capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """`fairlead("scenarios", "--json")` -> exit code, stdout and stderr."""

    def run(*args: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(args))
        assert isinstance(stop.value.code, int)
        return Ended(stop.value.code, *capsys.readouterr())

    return run
