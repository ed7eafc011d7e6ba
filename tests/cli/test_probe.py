"""`fairlead probe`, from the command line."""

import json

import yaml
from tests.emulated import emulated

from fairlead.workload.scenario import load_scenario


def test_text_json_and_an_absent_server(fairlead, tmp_path):
    with emulated(load_scenario("uniform-lengths"), model="tiny") as urls:
        servers = [option for url in urls for option in ("--backend", url)]
        text = fairlead("probe", *servers)
        told = fairlead("probe", *servers, "--json")
        partly = fairlead("probe", *servers, "--backend", "http://127.0.0.1:1")
        config = tmp_path / "gateway.yaml"
        config.write_text(json.loads(told.out)["settings"])
        again = fairlead("probe", "--config", str(config))
        measured = fairlead("probe", *servers, "--measure")
    assert (text.code, told.code, again.code, measured.code) == (0, 0, 0, 0)
    assert "not measured" in text.out and "# decode_iteration_s: 0.01   # declare it" in text.out
    assert "s for a decode iteration" in measured.out and "# decode_iteration_s" not in measured.out
    assert all(url in text.out for url in urls) and "tiny" in text.out
    found = json.loads(told.out)
    assert [each["url"] for each in found["backends"]] == urls
    assert [each["url"] for each in yaml.safe_load(found["settings"])["backends"]] == urls
    assert partly.code == 2 and partly.err.startswith("error: http://127.0.0.1:1: no connection")
    assert "not usable" in partly.out


def test_without_a_backend_it_says_so(fairlead):
    ended = fairlead("probe")
    assert ended.code == 2 and ended.err.startswith("error: ") and "no backends" in ended.err
