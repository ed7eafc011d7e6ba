"""Figures name every series and stand on their own inside a page."""

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

from fairlead.errors import FairleadError
from fairlead.evaluate.figures import distribution, plane, training_curve
from fairlead.evaluate.results import Results


def check_svg(svg: str, prefix: str) -> list[str]:
    """Well formed, no foreign reference, ids under the prefix; returns the texts."""
    root = ET.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.get("viewBox")
    assert not re.search(r"\b(nan|inf)\b", svg)
    for element in root.iter():
        assert element.get("id", prefix).startswith(prefix)
        reference = element.get("{http://www.w3.org/1999/xlink}href", f"#{prefix}")
        assert reference.startswith(f"#{prefix}")
        if element.tag.endswith("}text"):
            assert "font:" not in element.get("style", "")  # the page's font is used
    assert "currentColor" in svg and "#010203" not in svg
    return ["".join(element.itertext()) for element in root.iter() if element.tag.endswith("}text")]


def test_the_plane_names_every_router(results: Results) -> None:
    texts = check_svg(plane(results, "chat-equal", 0.7, "p"), "p")
    assert set(results.configuration.router_names) <= set(texts)


def test_figures_are_reproducible(results: Results) -> None:
    assert plane(results, "chat-equal", 0.7, "p") == plane(results, "chat-equal", 0.7, "p")


def test_many_equal_routers_can_still_be_drawn(results: Results) -> None:
    same = [c.model_copy(update={"mean": 0.0, "reference": 0.0}) for c in results.comparisons]
    crowded = results.model_copy(update={"comparisons": same})
    crowded.__dict__.pop("_comparison_index", None)  # the index of the original came along
    texts = check_svg(plane(crowded, "chat-equal", 0.7, "p"), "p")
    assert set(results.configuration.router_names) <= set(texts)


def test_the_distribution_names_what_it_draws(results: Results) -> None:
    rng = np.random.default_rng(0)
    routers = results.configuration.routers
    latencies = {info.name: rng.lognormal(size=500) for info in routers}
    texts = check_svg(distribution(latencies, routers, "TTFT", "d"), "d")
    assert {info.name for info in routers} <= set(texts)
    assert "TTFT (s)" in texts


def test_the_training_curve_skips_rows_without_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "training.csv"
    path.write_text("iteration,charts/decisions,evaluation/objective\n0,100,5.0\n1,200,\n2,300,4.0\n")
    svg = training_curve(path, "t")
    assert "decisions" in check_svg(svg, "t")
    assert "from 5 to 4 at best" in svg


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("a,b\n1,2\n", "not a training log"),
        ("charts/decisions,evaluation/objective\n1,x\n", "not a training log"),
        ("charts/decisions,evaluation/objective\n1,\n", "no evaluation"),
        (None, "cannot read"),
    ],
)
def test_other_files_are_not_training_logs(tmp_path: Path, content: str | None, complaint: str) -> None:
    path = tmp_path / "training.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(FairleadError, match=complaint):
        training_curve(path, "t")
