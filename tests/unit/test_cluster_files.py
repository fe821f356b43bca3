"""peers/cluster: the files parse, fit together, and start a peer that its own options allow."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from astra_mesh.bundle.store import ENVIRONMENT
from astra_mesh.cli.app import app
from astra_mesh.mesh.identity import DEVICE_FILE_NAME
from astra_mesh.mesh.trust import Trust
from astra_mesh.peer.config import DEFAULT_PORT

FOLDER = Path(__file__).parents[2] / "peers" / "cluster"
DOCKERFILE = FOLDER.parent / "board" / "Dockerfile"


def load(name: str) -> dict[str, Any]:
    (found,) = yaml.safe_load_all((FOLDER / name).read_text())
    return dict(found)


@pytest.fixture
def daemon() -> dict[str, Any]:
    return load("daemonset.yaml")


def test_the_list_names_every_file() -> None:
    listed = load("kustomization.yaml")["resources"]
    assert {*listed, "kustomization.yaml"} == {path.name for path in FOLDER.glob("*.yaml")}
    kinds = {name: (load(name)["apiVersion"], load(name)["kind"]) for name in listed}
    assert kinds == {
        "namespace.yaml": ("v1", "Namespace"),
        "service.yaml": ("v1", "Service"),
        "daemonset.yaml": ("apps/v1", "DaemonSet"),
    }
    assert load("kustomization.yaml")["namespace"] == load("namespace.yaml")["metadata"]["name"]


@pytest.mark.parametrize("version", ["1.25", kubernetes_validate.latest_version()])
@pytest.mark.parametrize("name", ["namespace.yaml", "service.yaml", "daemonset.yaml"])
def test_kubernetes_takes_the_files(name: str, version: str) -> None:
    found = load(name)
    kubernetes_validate.validate(found, version, strict=True)
    found["spec" if "spec" in found else "metadata"]["hostNetwrk"] = True
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(found, version, strict=True)


def test_the_service_finds_the_peers_and_they_ask_for_its_name(daemon: dict[str, Any]) -> None:
    service, template = load("service.yaml"), daemon["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert daemon["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    (container,) = template["spec"]["containers"]
    (port,) = container["ports"]
    assert port["containerPort"] == DEFAULT_PORT == service["spec"]["ports"][0]["port"]
    assert service["spec"]["ports"][0]["targetPort"] == port["name"]
    name = service["metadata"]["name"]
    assert f"--peers-at={name}.$(NAMESPACE).svc:{DEFAULT_PORT}" in container["args"]
    given = {one["name"] for one in container["env"]}
    for word in container["args"]:
        if "$(" in word:
            assert word.partition("$(")[2].partition(")")[0] in given


def test_the_options_are_those_of_the_command(daemon: dict[str, Any]) -> None:
    (container,) = daemon["spec"]["template"]["spec"]["containers"]
    command, *options = container["args"]
    result = CliRunner().invoke(app, [command, *options, "--help"])
    assert result.exit_code == 0
    for option in options:
        assert option.partition("=")[0] in result.output
    program, *words = container["startupProbe"]["exec"]["command"]
    assert program == "astra-mesh"
    assert f"--connect=127.0.0.1:{DEFAULT_PORT}" in words
    assert "readinessProbe" not in container, "then service.yaml would say what ready means"


def test_the_pods_may_do_nothing_that_they_need_not(daemon: dict[str, Any]) -> None:
    spec = daemon["spec"]["template"]["spec"]
    containers = [*spec["initContainers"], *spec["containers"]]
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in containers:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    mounted = {one["name"] for container in containers for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in spec["volumes"]}


def test_images_that_were_copied_to_the_nodes_are_not_pulled(daemon: dict[str, Any]) -> None:
    spec = daemon["spec"]["template"]["spec"]
    for container in (*spec["initContainers"], *spec["containers"]):
        assert container["imagePullPolicy"] == "IfNotPresent"


def test_pods_share_the_key_of_one_device(daemon: dict[str, Any], tmp_path: Path) -> None:
    """A pod has the file of the README's secret, where its peer looks for it, and nothing else."""
    spec = daemon["spec"]["template"]["spec"]
    (first,), (container,) = spec["initContainers"], spec["containers"]
    (volume,) = (one for one in spec["volumes"] if one["name"] == "secret")
    readme = (FOLDER / "README.md").read_text()
    made = f"cluster-trust/{DEVICE_FILE_NAME}"
    secret = volume["secret"]["secretName"]
    assert f"create secret generic {secret} --from-file={made}" in readme
    *words, source, target = first["command"]
    (env,) = (one["value"] for one in container["env"] if one["name"] == "ASTRA_MESH_TRUST")
    assert (source, target) == (f"/secret/{DEVICE_FILE_NAME}", f"{env}/{DEVICE_FILE_NAME}")

    key = Trust.open(tmp_path / "cluster-trust").folder / DEVICE_FILE_NAME
    pods = []
    for pod in ("one", "two"):
        there = tmp_path / pod / "trust"
        subprocess.run([*words, key, there / DEVICE_FILE_NAME], check=True)
        pods.append(Trust.open(there))
    assert pods[0].device.id == pods[1].device.id


def test_a_join_key_comes_from_a_secret(daemon: dict[str, Any]) -> None:
    (container,) = daemon["spec"]["template"]["spec"]["containers"]
    assert "key" not in " ".join(container["args"])
    (source,) = (
        one["valueFrom"]["secretKeyRef"]
        for one in container["env"]
        if one["name"] == "ASTRA_MESH_JOIN_KEY"
    )
    assert source["optional"] is True
    made = f"create secret generic {source['name']} --from-file={source['key']}=/dev/stdin"
    assert made in (FOLDER / "README.md").read_text()


def test_the_image_has_the_user_and_all_that_the_wheel_needs(daemon: dict[str, Any]) -> None:
    text, root = DOCKERFILE.read_text(), FOLDER.parents[1]
    user = daemon["spec"]["template"]["spec"]["securityContext"]["runAsUser"]
    assert f"USER {user}\n" in text
    assert f"--uid {user} " in text
    for line in text.splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            for word in line.split()[1:-1]:
                assert (root / word).exists(), word


def test_models_of_a_volume_are_patched_in_as_the_text_says(daemon: dict[str, Any]) -> None:
    _, block = (FOLDER / "README.md").read_text().split("```yaml", 1)
    (patch,) = yaml.safe_load(block.split("```")[0])["patches"]
    assert patch["target"] == {"kind": daemon["kind"], "name": daemon["metadata"]["name"]}
    for step in yaml.safe_load(patch["patch"]):
        *steps, end = step["path"].strip("/").split("/")
        assert (step["op"], end) == ("add", "-")
        place: Any = daemon
        for one in steps:
            place = place[int(one) if one.isdigit() else one]
        place.append(step["value"])
    kubernetes_validate.validate(daemon, kubernetes_validate.latest_version(), strict=True)
    (container,) = daemon["spec"]["template"]["spec"]["containers"]
    mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
    chosen = {one["name"]: one.get("value") for one in container["env"]}
    assert chosen[ENVIRONMENT] == mounts["models"]
