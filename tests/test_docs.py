"""Every command in README.md and docs/ is run; every make target in them exists.

The commands are those of fenced `console` or `bash` blocks that begin with `fairlead` or `make`, after an
optional `$ `. The commands of one page run in order, in one empty folder of their own, so that a later one
finds what an earlier one wrote. A comment on a line of its own before a block says how to run it here:

    <!-- test: --requests 200 --seeds 2 -->     added to each `fairlead` command of the block
    <!-- test: skip because it takes an hour --> nothing of the block is run
    <!-- test: file my-cluster.yaml -->         the block (of any language) is written to that file
"""

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for path in [ROOT / "README.md", *(ROOT / "docs").glob("**/*.md")] if path.is_file())

_BLOCK = re.compile(
    r"(?:^<!-- test: (?P<note>[^\n]*?) -->\n+)?^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.M | re.S
)


class Block(NamedTuple):
    """A fenced block and the note before it."""

    note: str
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        """The command lines, with continued lines joined."""
        if self.language not in ("console", "bash"):
            return []
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.removeprefix("$ ").strip() for line in lines]


def blocks(text: str) -> list[Block]:
    found = _BLOCK.finditer(text)
    return [Block(match["note"] or "", match["language"], match["text"]) for match in found]


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


def run(command: str, folder: Path) -> None:
    """A `fairlead` command line, as a user's shell would run it."""
    words = shlex.split(command, comments=True)
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, check=False, timeout=280
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_the_page_works(page: Path, tmp_path: Path):
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.note.startswith("file "):
            (tmp_path / block.note.removeprefix("file ")).write_text(block.text, encoding="utf-8")
        for command in block.commands:
            if command.startswith("make"):
                wanted = {word for word in shlex.split(command, comments=True)[1:] if "=" not in word}
                assert wanted <= make_targets(), command
            elif command.startswith("fairlead ") and not block.note.startswith("skip because "):
                options = "" if block.note.startswith("file ") else block.note
                run(f"{command} {options}", tmp_path)


def test_the_router_in_the_simulator_page_runs(tmp_path: Path):
    page = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
    (code,) = [block.text for block in blocks(page) if block.note == "file my_router.py"]
    (tmp_path / "my_router.py").write_text(code, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "my_router.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"mean E2E \d+\.\d\d s\n", done.stdout)


def test_the_readme_is_among_the_pages():
    assert ROOT / "README.md" in PAGES


def drawn_tree(text: str) -> set[str]:
    """The paths in the block that begins with `src/fairlead/`, from their indentation."""
    (block,) = [each.text for each in blocks(text) if each.text.startswith("src/fairlead/")]
    found: set[str] = set()
    folder = ""
    for line in block.splitlines()[1:]:
        name, depth = line.split()[0], len(line) - len(line.lstrip())
        folder = folder if depth > 2 else name if name.endswith("/") else ""
        found.add(f"{folder}{name}" if depth > 2 else name)
    return found


def test_the_tree_in_the_architecture_page_is_that_of_the_package():
    package = ROOT / "src" / "fairlead"
    there = {
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if path.name != "__init__.py" or path.parent == package
    }
    there |= {
        f"{path.parent.relative_to(package).as_posix()}/" for path in package.rglob("*") if path.is_file()
    }
    there -= {"./", *(name for name in there if "__pycache__" in name)}
    assert drawn_tree((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")) == there


def test_notes_are_understood():
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            assert not block.note or block.note.startswith(("--", "skip because ", "file ")), (
                page,
                block.note,
            )


def test_blocks_commands_and_notes_are_found():
    page = "\n".join(
        [
            "Text",
            "<!-- test: --seeds 2 -->",
            "```console",
            "$ fairlead evaluate \\",
            "    --out x",
            "some output",
            "```",
            "",
            "```python",
            "fairlead = 1",
            "```",
        ]
    )
    first, second = blocks(page)
    assert first.note == "--seeds 2"
    assert first.commands == ["fairlead evaluate      --out x", "some output"]
    assert second.commands == []


def test_a_command_that_fails_is_noticed(tmp_path: Path):
    with pytest.raises(AssertionError, match="no-such-scenario"):
        run("fairlead scenarios no-such-scenario", tmp_path)
