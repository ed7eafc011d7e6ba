import pytest
from pydantic import TypeAdapter, ValidationError

from fairlead.train.schedule import Constant, Exponential, Linear, Piecewise, Schedule


@pytest.mark.parametrize(
    ("schedule", "start", "middle", "end"),
    [
        (Constant(value=3.0), 3.0, 3.0, 3.0),
        (Linear(start=1.0, end=0.0), 1.0, 0.5, 0.0),
        (Exponential(start=1.0, end=0.01), 1.0, 0.1, 0.01),
        (Piecewise(points=((0.25, 2.0), (0.75, 4.0))), 2.0, 3.0, 4.0),
    ],
)
def test_values(schedule, start, middle, end):
    assert [schedule.at(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([start, middle, end])


def test_shorthands():
    read = TypeAdapter(Schedule).validate_python
    assert read(0.3) == Constant(value=0.3)
    assert read([[0, 0.02], [1, 0]]) == Piecewise(points=((0.0, 0.02), (1.0, 0.0)))
    assert read({"kind": "linear", "start": 1, "end": 2}) == Linear(start=1, end=2)


@pytest.mark.parametrize("wrong", [[[1, 0], [0, 1]], [[0, 1], [2, 1]], [], {"kind": "cosine"}, "fast", True])
def test_nonsense_is_refused(wrong):
    with pytest.raises(ValidationError):
        TypeAdapter(Schedule).validate_python(wrong)
