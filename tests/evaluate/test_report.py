"""The report shows every router, needs nothing from outside, and hides nothing."""

import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.phrasing import LABELS, MINUS
from fairlead.evaluate.report import render_report
from fairlead.evaluate.results import Results, write_results


class Page(HTMLParser):
    """Tags with their attributes, and the text of the page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())


@pytest.fixture(scope="module")
def html(make_run: Callable[[Path], Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    directory = make_run(tmp_path_factory.mktemp("run"))
    log = directory / "training.csv"
    log.write_text("iteration,charts/decisions,evaluation/objective\n0,100,5.0\n1,300,4.0\n")
    path = render_report(directory, training_log=log)
    assert path == directory / "report.html"
    return path.read_text(encoding="utf-8")


def test_every_router_is_in_every_table(html: str, results: Results) -> None:
    page = Page(html)
    for name in results.configuration.router_names:
        # Two tables (main and folded) in each of three settings, the plane and the list at the end.
        assert sum(text == name for text in page.texts) >= 3 * 3
    assert {LABELS[metric] for metric in LABELS} <= set(page.texts)


def test_who_wins_is_said_in_words(html: str, results: Results) -> None:
    text = " ".join(Page(html).texts)
    assert results.words[0] in text
    assert "learned wins on mean E2E" in text and "loses on mean TTFT" in text
    assert f"✓ {MINUS}22" in text and "✗ +21" in text  # signs, not colour alone


def test_how_it_was_made_is_there(html: str, results: Results) -> None:
    for needed in (
        results.configuration_hash,
        "fairlead evaluate --scenario chat-equal",
        "0, 1, 2, 3, 4",
        "300",
    ):
        assert needed in html
    assert "Scenario chat-unequal in full" in html


def test_pitfall_23_no_cell_is_empty_or_missing(html: str) -> None:
    assert not re.search(r"\b(nan|NaN|inf|None|undefined)\b|N/A", html)
    assert not re.search(r"<td[^>]*>\s*</td>", html)


def test_nothing_is_loaded_from_elsewhere(html: str) -> None:
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object", "embed"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for name, value in attributes.items():
            if name in ("src", "href", "xlink:href", "action"):
                assert value is not None and value.startswith("#")
    style = re.findall(r"<style[^>]*>(.*?)</style>", html, re.DOTALL)
    assert not any("@import" in text or "http" in text for text in style)


def test_anchors_lead_somewhere_and_ids_are_unique(html: str) -> None:
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    targets = {str(a.get("href", a.get("xlink:href", "#made")))[1:] for _, a in page.tags}
    assert targets <= set(ids)


def test_names_are_escaped(tmp_path: Path, results: Results) -> None:
    hostile = "<script>alert(1)</script>"
    configuration = results.configuration.model_copy(update={"command": hostile})
    write_results(tmp_path, results.model_copy(update={"configuration": configuration}))
    text = render_report(tmp_path).read_text(encoding="utf-8")
    assert hostile not in text and "&lt;script&gt;" in text


def test_without_requests_the_distributions_are_left_out(tmp_path: Path, results: Results, html: str) -> None:
    write_results(tmp_path, results)
    text = render_report(tmp_path).read_text(encoding="utf-8")
    assert "Distribution of E2E" in html and "Distribution of E2E" not in text
    assert render_report(tmp_path).read_text(encoding="utf-8") == text  # again: the same, replaced


def test_requests_of_another_run_are_refused(
    tmp_path: Path, results: Results, make_run: Callable[[Path], Path]
) -> None:
    make_run(tmp_path)
    other = results.configuration.model_copy(update={"warmup": 0.2})
    changed = results.model_copy(update={"configuration": other, "configuration_hash": other.hash()})
    write_results(tmp_path, changed)
    with pytest.raises(FairleadError, match="different runs"):
        render_report(tmp_path)


def test_pitfall_23_incomplete_results_are_not_reported(tmp_path: Path, results: Results) -> None:
    path = write_results(tmp_path, results)
    document = json.loads(path.read_text(encoding="utf-8"))
    del document["comparisons"][0]
    path.write_text(json.dumps(document), encoding="utf-8")
    with pytest.raises(FairleadError, match="no comparison for"):
        render_report(tmp_path)
    assert not (tmp_path / "report.html").exists()
