"""Every pitfall of earlier attempts has a guarding test that bears its number.

The numbers: 1 to 5 the problem was posed so that nothing could be learned, 6 to 11 the reward said nothing
about the action, 12 to 14 the state said nothing about the choice, 15 to 20 the algorithm was not PPO, 21 and
22 a warm start that did not start, 23 to 27 evaluation that could not fail, 28 to 32 engineering.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PITFALLS = range(1, 33)
LONGEST_MODULE = 800
LONGEST_CLASS = 600
MOST_FLAGS = 20


def test_every_pitfall_has_a_test() -> None:
    names = [
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^def (test_pitfall_\w+)", path.read_text(encoding="utf-8"), re.M)
    ]
    guarded = {int(name.split("_")[2]) for name in names}
    assert sorted(set(PITFALLS) - guarded) == []


def test_pitfall_28_no_module_and_no_class_holds_everything() -> None:
    too_long = []
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if text.count("\n") > LONGEST_MODULE:
            too_long.append(path.name)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and (node.end_lineno or 0) - node.lineno > LONGEST_CLASS:
                too_long.append(f"{path.name}: {node.name}")
    assert too_long == []


def test_pitfall_28_settings_are_sections_of_a_file_not_flat_flags() -> None:
    tree = ast.parse((ROOT / "src" / "fairlead" / "cli" / "train.py").read_text(encoding="utf-8"))
    command = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "command")
    assert len(command.args.args) < MOST_FLAGS


def test_pitfall_32_no_error_is_swallowed() -> None:
    """No `except` whose body does nothing, except where the reason is written in the next words."""
    silent = []
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ExceptHandler):
                bare = node.type is None
                broad = isinstance(node.type, ast.Name) and node.type.id in ("Exception", "BaseException")
                nothing = all(isinstance(each, ast.Pass | ast.Continue) for each in node.body)
                if bare or (broad and nothing):
                    silent.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert silent == []
