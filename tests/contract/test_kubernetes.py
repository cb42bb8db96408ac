"""kubernetes/: the manifests agree with each other, the settings, the rules, and what the exporter asks for."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from immich_vitals import bundling
from immich_vitals.settings import BY_NAME, SETTINGS
from support import pods
from support.fake_kubernetes import RIGHTS

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "kubernetes"
NAME = "immich-vitals"
LABELS = {"app.kubernetes.io/name": NAME}
# Of the annotation that `kubectl apply` without --server-side makes of a whole object; an object itself may have 1 MiB.
LARGEST_ANNOTATIONS = 256 * 1024

Json = dict[str, Any]


def roots(folder: Path = FOLDER) -> Iterator[Path]:
    """The folders that kustomize goes through."""
    yield folder
    for each in yaml.safe_load((folder / "kustomization.yaml").read_text()).get("resources", []):
        if (folder / each).is_dir():
            yield from roots((folder / each).resolve())


def objects() -> Iterator[Json]:
    """All that is written in files; the ConfigMaps of the dashboards kustomize makes itself."""
    for folder in roots():
        for each in yaml.safe_load((folder / "kustomization.yaml").read_text()).get("resources", []):
            if (folder / each).is_file():
                yield from yaml.safe_load_all((folder / each).read_text())


def only(kind: str) -> Json:
    (found,) = [each for each in objects() if each["kind"] == kind]
    return found


@pytest.fixture(scope="module")
def pod() -> Json:
    return dict(only("Deployment")["spec"]["template"]["spec"])


@pytest.fixture(scope="module")
def container(pod: Json) -> Json:
    (found,) = pod["containers"]
    return dict(found)


def test_every_file_is_listed() -> None:
    """No manifest is forgotten, and none is listed that is not there."""
    for folder in roots():
        told = yaml.safe_load((folder / "kustomization.yaml").read_text())
        assert {each for each in told.get("resources", []) if each.endswith(".yaml")} == {
            path.name for path in folder.glob("*.yaml") if path.name != "kustomization.yaml"
        }
        assert {name for each in told.get("configMapGenerator", []) for name in each["files"]} == {
            path.name for path in folder.glob("*.json")
        }
    assert {path.parent for path in FOLDER.rglob("*.yaml")} <= set(roots())


def test_names_and_labels() -> None:
    """All are called alike and carry the label that selectors look for."""
    for each in objects():
        assert (each["metadata"]["name"], each["metadata"]["labels"]) == (NAME, LABELS), each["kind"]
        assert "namespace" not in each["metadata"], "kustomize gives it"
    deployment = only("Deployment")["spec"]
    assert deployment["selector"]["matchLabels"] == deployment["template"]["metadata"]["labels"] == LABELS
    assert only("Service")["spec"]["selector"] == LABELS
    assert only("ServiceMonitor")["spec"]["selector"]["matchLabels"] == LABELS
    assert only("NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == LABELS


def test_ports(container: Json) -> None:
    """The port of the settings is that of the container; all others go by its name."""
    (port,) = container["ports"]
    assert f":{port['containerPort']}" == BY_NAME["IMMICH_VITALS_LISTEN_ADDRESS"].default
    (service,) = only("Service")["spec"]["ports"]
    assert (service["port"], service["targetPort"], service["name"]) == (
        port["containerPort"],
        port["name"],
        port["name"],
    )
    (endpoint,) = only("ServiceMonitor")["spec"]["endpoints"]
    assert endpoint["port"] == service["name"]
    assert endpoint.get("path", "/metrics") == BY_NAME["IMMICH_VITALS_TELEMETRY_PATH"].default
    (ingress,) = only("NetworkPolicy")["spec"]["ingress"]
    assert [each["port"] for each in ingress["ports"]] == [port["name"]]
    for probe in ("livenessProbe", "readinessProbe"):
        assert container[probe]["httpGet"]["port"] == port["name"]


def test_settings(container: Json) -> None:
    """Every variable is a setting; secrets come from Secrets; every path is a mount, and only the state is writable."""
    env = {each["name"]: each for each in container["env"]}
    assert set(env) <= {setting.name for setting in SETTINGS}
    for setting in SETTINGS:
        if setting.secret and setting.name in env:
            assert "secretKeyRef" in env[setting.name]["valueFrom"], setting.name
    mounts = {each["mountPath"]: each for each in container["volumeMounts"]}
    assert set(mounts) == {each["value"] for each in env.values() if str(each.get("value", "")).startswith("/")}
    writable = [path for path, mount in mounts.items() if not mount.get("readOnly")]
    assert writable == [env["IMMICH_VITALS_STATE_PATH"]["value"]]


def test_addresses_are_let_through(container: Json) -> None:
    """Where the settings say that something answers, the NetworkPolicy lets it be asked."""
    open_ports = {port["port"] for rule in only("NetworkPolicy")["spec"]["egress"] for port in rule["ports"]}
    values = " ".join(str(each.get("value")) for each in container["env"])
    wanted = {int(port) for port in re.findall(r"http://[-\w]+:(\d+)", values)}
    wanted |= {int(BY_NAME[name].default) for name in ("DB_PORT", "REDIS_PORT", "KUBERNETES_SERVICE_PORT")}
    assert wanted <= open_ports


def test_names_of_the_chart(container: Json) -> None:
    """The services are those that the official chart makes for a release called immich."""
    values = {each["name"]: each.get("value") for each in container["env"]}
    assert values["REDIS_HOSTNAME"] == "immich-valkey"
    assert values["IMMICH_VITALS_SERVER_URL"] == "http://immich-server:2283"
    assert values["IMMICH_VITALS_MACHINE_LEARNING_URL"] == "http://immich-machine-learning:3003"


def test_stays_beside_the_server(pod: Json) -> None:
    """It prefers the node of the server, by the labels that the chart gives to that, and nobody else has."""
    (term,) = pod["affinity"]["podAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    wanted = term["podAffinityTerm"]["labelSelector"]["matchLabels"].items()
    fitting = [each["metadata"]["name"] for each in pods.healthy() if wanted <= each["metadata"]["labels"].items()]
    assert fitting == [pods.S]


def test_least_privilege(pod: Json, container: Json) -> None:
    """No root, no capability, nothing writable, a profile of system calls, a limit of memory, and no group of its own
    on volumes, which would change the owner of Immich's files."""
    assert pod["securityContext"] == {
        "runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    assert "USER 65532:65532" in (ROOT / "Dockerfile").read_text()
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    assert "memory" in container["resources"]["limits"]
    (library,) = [each for each in pod["volumes"] if each["name"] == "library"]
    assert library["persistentVolumeClaim"]["readOnly"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert pod["enableServiceLinks"] is False


def test_rights_are_those_that_are_used(pod: Json) -> None:
    """The Role grants what the fake API of the tests asks to be granted, where each right is seen to be used."""
    granted = {
        (group, resource, verb)
        for rule in only("Role")["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert granted == RIGHTS
    binding = only("RoleBinding")
    assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == ("Role", only("Role")["metadata"]["name"])
    (subject,) = binding["subjects"]
    account = only("ServiceAccount")
    assert (subject["kind"], subject["name"]) == ("ServiceAccount", account["metadata"]["name"])
    assert subject["namespace"] == yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["namespace"]
    assert pod["serviceAccountName"] == subject["name"]
    assert (account["automountServiceAccountToken"], pod["automountServiceAccountToken"]) == (False, True)


def test_scrape() -> None:
    """As often as in the compose example; `container` stays ours, and `instance` outlives the pod."""
    (endpoint,) = only("ServiceMonitor")["spec"]["endpoints"]
    prometheus = yaml.safe_load((ROOT / "compose" / "prometheus.yml").read_text())
    assert endpoint["interval"] == prometheus["global"]["scrape_interval"]
    assert (endpoint["scrapeTimeout"], endpoint["honorLabels"]) == ("10s", False)
    fixed = [each for each in endpoint["relabelings"] if each.get("targetLabel") == "instance"]
    assert [each["replacement"] for each in fixed] == ["immich"]
    (dropped,) = [each["regex"] for each in endpoint["relabelings"] if each.get("action") == "labeldrop"]
    assert set(dropped.split("|")) == {"container", "endpoint", "pod"}


def test_rules() -> None:
    """The PrometheusRule is the one that `immich-vitals bundle` writes; `make docs` writes it anew."""
    assert (FOLDER / "monitoring" / "prometheusrule.yaml").read_bytes() == bundling.files()["prometheusrule.yaml"]


def test_dashboards() -> None:
    """Each dashboard becomes a ConfigMap that the sidecar of Grafana finds, under a name that stays."""
    told = yaml.safe_load((ROOT / "grafana" / "dashboards" / "kustomization.yaml").read_text())
    assert told["generatorOptions"]["labels"] == {**LABELS, "grafana_dashboard": "1"}
    assert told["generatorOptions"]["disableNameSuffixHash"] is True
    for each in told["configMapGenerator"]:
        (file,) = each["files"]
        assert each["name"] == f"{Path(file).stem}-dashboard"


def test_nothing_is_too_large() -> None:
    """Everything fits into what `kubectl apply` notes of it, with some room, and so into an object of Kubernetes."""
    dashboards = [{"data": {path.name: path.read_text()}} for path in (ROOT / "grafana" / "dashboards").glob("*.json")]
    for each in [*objects(), *dashboards]:
        assert len(json.dumps(each)) < LARGEST_ANNOTATIONS - 2048
