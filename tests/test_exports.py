"""The public names are pinned here: a change of the interface is a change of this file."""

import subprocess
import sys

import fairlead

PUBLIC = ["FairleadError", "Scenario", "__version__", "load_scenario", "scenario_names"]


def test_the_public_names():
    assert sorted(fairlead.__all__) == PUBLIC
    assert set(PUBLIC) <= set(dir(fairlead))


def test_every_public_name_can_be_imported():
    for name in PUBLIC:
        assert getattr(fairlead, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    assert not hasattr(fairlead, "no_such_name")


def test_importing_the_package_loads_nothing_heavy():
    heavy = "{'numpy', 'numba', 'torch', 'pydantic', 'gymnasium', 'matplotlib'}"
    code = f"import sys, fairlead; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
