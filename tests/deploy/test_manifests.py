"""The files under deploy/ against the schemas of what reads them, and against each other."""

import re
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from compose_spec.models import ComposeSpecification, Service
from typer.testing import CliRunner

from fairlead.cli import app
from fairlead.serve.settings import GatewaySettings, parse_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
KUBERNETES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
VERSION = "1.37.0"

COMMANDS = {command.name for command in app.registered_commands}


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def resource(kind: str, name: str = "fairlead") -> dict[str, Any]:
    found = [each for path in KUBERNETES for each in documents(path) if each["kind"] == kind]
    (one,) = [each for each in found if each["metadata"]["name"] == name]
    return one


def gateway_settings() -> GatewaySettings:
    return parse_settings(yaml.safe_load(resource("ConfigMap")["data"]["gateway.yaml"]), "configmap.yaml")


def container() -> dict[str, Any]:
    (one,) = resource("Deployment")["spec"]["template"]["spec"]["containers"]
    assert isinstance(one, dict)
    return one


@pytest.mark.parametrize("path", KUBERNETES, ids=lambda path: path.stem)
def test_kubernetes_accepts_the_resource(path):
    for document in documents(path):
        if document["apiVersion"].startswith(("monitoring.coreos.com/", "kustomize.config.k8s.io/")):
            continue  # not of Kubernetes itself; tested below
        kubernetes_validate.validate(document, VERSION, strict=True)


def test_a_misspelt_key_would_be_found():
    deployment = resource("Deployment")
    deployment["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, VERSION, strict=True)


def test_kustomize_names_every_file():
    (kustomization,) = documents(DEPLOY / "kubernetes" / "kustomization.yaml")
    others = [path.name for path in KUBERNETES if path.stem != "kustomization"]
    assert sorted(kustomization["resources"]) == others


def test_the_gateway_reads_its_settings_and_finds_its_backends_behind_a_headless_service():
    settings = gateway_settings()
    assert settings.host == "0.0.0.0"
    assert settings.discovery is not None
    service = resource("Service", settings.discovery.host)["spec"]
    assert service["clusterIP"] == "None"
    assert [port["port"] for port in service["ports"]] == [settings.discovery.port]


def test_ports_labels_and_paths_fit_together():
    settings, spec = gateway_settings(), resource("Deployment")["spec"]
    assert [(port["name"], port["containerPort"]) for port in container()["ports"]] == [
        ("http", settings.port)
    ]
    labels = spec["template"]["metadata"]["labels"]
    assert spec["selector"]["matchLabels"] == labels
    service = resource("Service")
    assert service["spec"]["selector"] == labels
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]
    monitor = resource("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    names = {port["name"] for port in service["spec"]["ports"]}
    assert [(each["port"] in names, each["path"]) for each in monitor["endpoints"]] == [(True, "/metrics")]
    (mount,) = container()["volumeMounts"]
    assert container()["args"][:2] == ["serve", "--config"]
    assert container()["args"][2] == f"{mount['mountPath']}/gateway.yaml"


def test_probes_ask_for_what_the_gateway_answers():
    paths = {name: container()[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe")}
    assert set(paths.values()) == {"/health"}
    assert container()["readinessProbe"]["httpGet"]["path"] == "/ready"


def test_a_shutdown_may_take_as_long_as_the_gateway_drains():
    grace = resource("Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    pause = float(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert grace > gateway_settings().timeouts.drain + pause
    (compose,) = documents(DEPLOY / "compose.yaml")
    assert compose["services"]["gateway"]["stop_grace_period"] == "90s"  # the default drain is 60 s


def test_compose_accepts_the_file():
    (compose,) = documents(DEPLOY / "compose.yaml")
    ComposeSpecification.model_validate(compose)
    # The models let unknown keys pass.
    assert set(compose) <= set(ComposeSpecification.model_fields)
    for service in compose["services"].values():
        assert set(service) <= set(Service.model_fields)


def test_the_gateway_of_compose_has_a_backend_for_every_port_of_the_emulator():
    (compose,) = documents(DEPLOY / "compose.yaml")
    emulator, gateway = compose["services"]["emulator"], compose["services"]["gateway"]
    backends = [word.partition("=")[2] for word in gateway["command"] if word.startswith("--backend=")]
    assert backends == [f"http://emulator:{port}" for port in emulator["expose"]]
    assert emulator["command"][0] in COMMANDS and gateway["command"][0] in COMMANDS


def test_both_gateways_start_with_the_policy_of_the_package(tmp_path):
    (compose,) = documents(DEPLOY / "compose.yaml")
    settings = tmp_path / "gateway.yaml"
    settings.write_text(resource("ConfigMap")["data"]["gateway.yaml"], encoding="utf-8")
    for command in (compose["services"]["gateway"]["command"], ["serve", "--config", str(settings)]):
        done = CliRunner().invoke(app, [*command, "--check"])
        assert done.exit_code == 0, done.output
        assert "policy fairlead/generalist" in done.output
    assert "--set=policy.on_policy_error=least_work" in compose["services"]["gateway"]["command"]
    assert gateway_settings().policy.on_policy_error == "least_work"


def test_the_container_file_copies_what_is_there_and_starts_what_there_is():
    text = (DEPLOY / "Containerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.M):
        for name in line.split()[:-1]:
            assert (DEPLOY.parent / name).exists(), name
    assert re.search(r"^USER 10001$", text, re.M)
    assert re.search(r'^ENTRYPOINT \["fairlead"\]$', text, re.M)
    (command,) = re.findall(r'^CMD \["(\w+)"', text, re.M)
    assert command in COMMANDS
