"""YAML as its writer meant it."""

import pytest
import yaml

from fairlead.loader import load_yaml, problem_of


def test_plain_values_are_read_and_merged():
    assert load_yaml("a: &x {b: 1, c: 2}\nd: {<<: *x, c: 3}") == {
        "a": {"b": 1, "c": 2},
        "d": {"b": 1, "c": 3},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb:\n  c: 1\n  c: 2\n", "line 4: the key c is given twice"),
        ("a: [1\n", "line 2: expected ',' or ']', but got '<stream end>'"),
    ],
)
def test_what_is_wrong_is_one_line(text: str, problem: str):
    with pytest.raises(yaml.YAMLError) as error:
        load_yaml(text)
    assert problem_of(error.value) == problem
