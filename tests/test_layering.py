"""The import order of the rooms, read from the syntax trees: nothing is imported, nothing is run.

Imports inside functions and under `if TYPE_CHECKING` count like all others.
"""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "fairlead"

BASE = {"errors", "rng", "compiled", "files", "loader", "section"}
UP_TO_SIMULATOR = BASE | {"workload", "view", "simulator"}
UP_TO_EVALUATE = UP_TO_SIMULATOR | {"calibrate", "vidur", "env", "policy", "evaluate"}

# Room (a package or a module right below fairlead/) -> the rooms that it may import besides itself.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "rng": {"errors"},
    "compiled": {"errors"},
    "files": {"errors"},
    "loader": set(),
    "section": {"errors"},
    "workload": BASE,
    "view": BASE,
    "simulator": BASE | {"workload", "view"},
    "env": UP_TO_SIMULATOR | {"policy"},
    "policy": BASE | {"view"},
    "vidur": UP_TO_SIMULATOR | {"calibrate"},
    "evaluate": UP_TO_SIMULATOR | {"calibrate", "vidur", "env", "policy", "serve"},
    "train": UP_TO_EVALUATE | {"serve"},
    "serve": BASE | {"view", "policy"},
    "emulate": UP_TO_SIMULATOR | {"serve"},  # its connections are those of the gateway
    "calibrate": UP_TO_SIMULATOR,
    "bench": UP_TO_EVALUATE | {"train"},
    "cli": UP_TO_EVALUATE | {"train", "serve", "emulate", "calibrate", "bench"},
    "__main__": {"cli"},
    "__init__": UP_TO_EVALUATE,  # the public names, imported on first use
}

# Only here may the training extra be imported at the top of a module: without it, the rest still works.
TRAINING_EXTRA = {"torch", "onnx", "tensorboard"}
NEEDS_TRAINING_EXTRA = ("train/", "policy/layers.py", "policy/network.py", "bench/training.py")


def modules(package: Path) -> dict[str, Path]:
    """Dotted name -> file of every module of the package."""
    names = {}
    for path in sorted(package.rglob("*.py")):
        parts = [package.name, *path.relative_to(package).with_suffix("").parts]
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                found.add(name if name in known else str(node.module))
    return found & set(known)


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def misplaced(package: Path) -> list[str]:
    """Every import that points the wrong way, as `importer -> imported`."""
    known = modules(package)
    wrong = []
    for module, path in known.items():
        here = room(module)
        for target in sorted(imports(path, known)):
            # `from fairlead import __version__` is fine; the other public names have a room of their own.
            if room(target) not in {here, "__init__"} and room(target) not in MAY_IMPORT[here]:
                wrong.append(f"{module} -> {target}")
    return wrong


def cycle(package: Path) -> list[str]:
    """The modules of one import cycle, or nothing."""
    known = modules(package)
    # The root package names its public members lazily; it is left out as a node.
    graph = {module: imports(path, known) - {module, package.name} for module, path in known.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_every_room_has_a_place_in_the_order():
    assert {room(module) for module in modules(PACKAGE)} <= set(MAY_IMPORT)


def test_imports_follow_the_order_of_the_rooms():
    assert misplaced(PACKAGE) == []


def test_there_is_no_import_cycle():
    assert cycle(PACKAGE) == []


def test_policy_and_serve_never_see_the_simulator():
    for here in ("policy", "serve"):
        assert not MAY_IMPORT[here] & {"simulator", "env", "workload", "train", "evaluate"}


def test_only_training_needs_the_training_extra():
    wrong = []
    for path in modules(PACKAGE).values():
        name = path.relative_to(PACKAGE).as_posix()
        if name.startswith(NEEDS_TRAINING_EXTRA):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [str(node.module)]
            wrong += [f"{name}: {each}" for each in names if each.split(".")[0] in TRAINING_EXTRA]
    assert wrong == []


@pytest.mark.parametrize(
    "line",
    [
        "import fairlead.simulator.engine",
        "from fairlead.simulator import engine",
        "from fairlead.simulator.engine import step",
        "def late():\n    from fairlead.simulator.engine import step\n",
    ],
)
def test_the_test_itself_finds_a_wrong_import(tmp_path: Path, line: str):
    package = tmp_path / "fairlead"
    for name in ("policy", "simulator"):
        (package / name).mkdir(parents=True)
        (package / name / "__init__.py").write_text("")
    (package / "simulator" / "engine.py").write_text("from fairlead.policy import router\nstep = 0\n")
    (package / "policy" / "router.py").write_text(line)
    assert any(each.startswith("fairlead.policy.router -> fairlead.simulator") for each in misplaced(package))


def test_the_test_itself_finds_a_cycle(tmp_path: Path):
    package = tmp_path / "fairlead"
    package.mkdir()
    (package / "rng.py").write_text("def late():\n    import fairlead.errors\n")
    (package / "errors.py").write_text("from fairlead.rng import word\n")
    assert {"fairlead.rng", "fairlead.errors"} <= set(cycle(package))
