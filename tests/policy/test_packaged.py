"""Policies that ship with the package."""

import json
from pathlib import Path

import pytest

from fairlead.errors import FairleadError
from fairlead.policy import packaged
from fairlead.policy.artefact import OnnxRouter
from fairlead.policy.catalogue import find_router, find_routers
from fairlead.policy.export import export_onnx
from fairlead.policy.network import RouterNetwork
from fairlead.policy.packaged import GENERALIST, RETRAIN, packaged_names, policy_path
from fairlead.serve.settings import Policy
from fairlead.view.preference import DEFAULT_FAVOR

RETRAIN_IT = f"fairlead/generalist does not fit this version any more: retrain it with `{RETRAIN}`"


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A packaged policy of today's schema, whatever lies in the package."""
    export_onnx(RouterNetwork(), tmp_path / "generalist.onnx", config={"seed": 7}, training={})
    monkeypatch.setattr(packaged, "DIRECTORY", tmp_path)
    return tmp_path / "generalist.onnx"


def test_the_generalist_fits_this_version():
    try:
        assert OnnxRouter(policy_path(GENERALIST)).engine == "compiled"
    except FairleadError as error:
        pytest.fail(f"{RETRAIN_IT} ({error})")


def test_the_generalist_is_small_and_says_how_it_was_trained():
    import onnx

    path = policy_path(GENERALIST)
    assert path.stat().st_size < 300_000
    properties = {each.key: each.value for each in onnx.load(path).metadata_props}
    beside = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    last = list(beside["stages"].values())[-1]
    assert json.loads(properties["config"]) == last["config"]
    assert properties["schema_hash"] == beside["schema_hash"], "the JSON beside it is another policy's"
    assert json.loads(properties["training"])["objective"] == last["objective"] == beside["objective"]
    assert beside["scenarios"] and all(stage["decisions"] > 0 for stage in beside["stages"].values())


def test_it_decides_unless_something_else_is_asked_for():
    assert GENERALIST in packaged_names()
    assert Policy().router == GENERALIST


def test_a_packaged_policy_is_a_router_by_its_name(shipped):
    plain, dialled = find_routers([GENERALIST, f"{GENERALIST}@0.8"])
    assert (plain.name, plain.kind) == ("generalist", "learned")
    assert plain.detail == f"fairlead/generalist, favor {DEFAULT_FAVOR:g}, compiled"
    assert dialled.name == "generalist@0.8" and isinstance(dialled.router, OnnxRouter)
    assert dialled.router.favor == 0.8
    assert policy_path(GENERALIST) == shipped


def test_files_are_files(tmp_path):
    assert policy_path("mine/policy.onnx") == Path("mine/policy.onnx")
    assert policy_path("fairlead/generalist.onnx") == Path("fairlead/generalist.onnx")


def test_an_unknown_name_names_the_known_ones(shipped):
    for text in ("fairlead/generalst", "fairlead/generalst@0.5"):
        with pytest.raises(FairleadError, match="did you mean fairlead/generalist"):
            find_router(text)
    with pytest.raises(FairleadError, match=r"known are .*fairlead/generalist"):
        find_router("nobody")
