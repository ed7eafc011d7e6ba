"""YAML as its writer meant it: a key that is given twice is an error."""

from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, which would silently keep the last of two equal keys: here they are an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for position, key in enumerate(keys):
            if key in keys[:position]:
                mark = node.value[position][0].start_mark
                raise yaml.MarkedYAMLError(problem=f"the key {key} is given twice", problem_mark=mark)
        return super().construct_mapping(node, deep)


def load_yaml(text: str) -> Any:
    """The plain values in a text.

    Raises:
        yaml.YAMLError: if it is not YAML, or a mapping has a key twice.
    """
    # A subclass of SafeLoader: builds plain values only.
    return yaml.load(text, Loader=_Loader)


def problem_of(error: yaml.YAMLError) -> str:
    """What is wrong, in one line, with its line where that is known."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "cannot be read"
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)
