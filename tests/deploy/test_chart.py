"""The chart, installed by Helm's own code into a cluster that is none (helm_install.py): whole, valid, and safe."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.deploy.conftest import ROOT, Accepts

CHART = ROOT / "deploy" / "helm" / "speakerd"
VALUES = {
    "default": None,
    "production": ROOT / "deploy" / "helm" / "production.yaml",
    "air-gapped": ROOT / "deploy" / "helm" / "air-gapped.yaml",
}
KUBERNETES = ("1.27", "1.31")
OF_OTHERS = {"Certificate", "ScaledObject", "ServiceMonitor", "PrometheusRule"}
"""Kinds that Kubernetes itself has no schema of."""

Objects = list[dict[str, Any]]
every_values = pytest.mark.parametrize("name", list(VALUES))


def helm(values: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    libraries = list(Path(sys.prefix).glob("opt/helm/helm_sdkpy/_lib/linux-amd64/libhelm_sdkpy.so"))
    if not libraries or sys.platform != "linux":
        pytest.skip("no Helm on this machine: helm-sdkpy's library is not in the environment")
    script = [sys.executable, Path(__file__).with_name("helm_install.py"), libraries[0], CHART, "voices", "rel"]
    return subprocess.run(script, input=json.dumps(values), capture_output=True, text=True, timeout=120, check=False)


def values_of(name: str) -> dict[str, Any]:
    file = VALUES[name]
    return {} if file is None else yaml.safe_load(file.read_text())


@functools.cache
def installed(name: str) -> Objects:
    done = helm(values_of(name))
    assert done.returncode == 0, done.stderr
    made: Objects = json.loads(done.stdout)
    return made


def refused(values: dict[str, Any]) -> str:
    done = helm(values)
    assert done.returncode == 1
    return done.stderr


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [one for one in objects if one["kind"] in kinds]


def workloads(name: str) -> Objects:
    return of_kind(installed(name), "Deployment", "StatefulSet")


def pods(name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(one["metadata"]["name"], one["spec"]["template"]) for one in workloads(name)]


def variables(container: dict[str, Any]) -> dict[str, str]:
    return {one["name"]: one.get("value", "10.0.0.7") for one in container["env"]}


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@every_values
def test_kubernetes_takes_every_object(name: str) -> None:
    for one in installed(name)[:-1]:
        if one["kind"] in OF_OTHERS:
            assert one["spec"] and one["apiVersion"]
            continue
        for version in KUBERNETES if name == "default" else KUBERNETES[-1:]:
            kubernetes_validate.validate(one, version, strict=True)


@every_values
def test_what_a_pod_is_told_its_daemon_takes(name: str, accepts: Accepts) -> None:
    files = {"database_url": "postgresql+asyncpg://u:p@h/d", "redis_url": "redis://h", "kek": "bm9uZQ=="}
    for workload, pod in pods(name):
        (container,) = pod["spec"]["containers"]
        told = {key: re.sub(r"\$\((\w+)\)", "rel-node-0", value) for key, value in variables(container).items()}
        (daemon,) = container["args"]
        settings = accepts(daemon, told, files if "SPEAKERD_SECRETS_DIR" in told else {})
        assert settings.tls_cert is not None, workload


def test_a_setting_that_there_is_not_is_found(accepts: Accepts) -> None:
    done = helm({"node": {"settings": {"file_max": 4}}})
    (node,) = of_kind(json.loads(done.stdout), "StatefulSet")
    with pytest.raises(AssertionError, match="no such setting"):
        accepts("node", variables(node["spec"]["template"]["spec"]["containers"][0]), {})


@every_values
def test_no_container_may_do_what_it_need_not(name: str) -> None:
    for workload, pod in pods(name):
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"] == 10001, workload
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False and spec["enableServiceLinks"] is False
        for container in [*spec.get("initContainers", []), *spec["containers"]]:
            allowed = container["securityContext"]
            assert allowed["readOnlyRootFilesystem"] and not allowed["allowPrivilegeEscalation"]
            assert allowed["capabilities"] == {"drop": ["ALL"]}
            assert {"requests", "limits"} <= container["resources"].keys()
            writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
            assert writable <= {"/tmp", "/data"}


@every_values
def test_probes_ask_the_three_words_where_they_are_answered_in_plain_http(name: str) -> None:
    for _, pod in pods(name):
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert variables(container)["SPEAKERD_METRICS"] == f"0.0.0.0:{ports['metrics']}"
        for probe, word in (("startupProbe", "started"), ("livenessProbe", "live"), ("readinessProbe", "ready")):
            assert container[probe]["httpGet"] == {"path": f"/health/{word}", "port": "metrics"}
        starts_s = container["startupProbe"]["periodSeconds"] * container["startupProbe"]["failureThreshold"]
        assert starts_s >= 300, "an engine is loaded from a cold disk"


@every_values
def test_a_pod_is_given_the_time_that_its_drain_takes(name: str) -> None:
    for _, pod in pods(name):
        (container,) = pod["spec"]["containers"]
        waits_s = float(container["lifecycle"]["preStop"]["exec"]["command"][-1])
        drains_s = float(variables(container)["SPEAKERD_DRAIN_S"])
        assert pod["spec"]["terminationGracePeriodSeconds"] >= waits_s + drains_s + 10


@every_values
def test_every_selector_selects_what_it_should(name: str) -> None:
    objects, labels = installed(name), {workload: pod["metadata"]["labels"] for workload, pod in pods(name)}
    for one in workloads(name):
        own = one["spec"]["selector"]["matchLabels"]
        assert [workload for workload in labels if selects(own, labels[workload])] == [one["metadata"]["name"]]
    for service in of_kind(objects, "Service"):
        selector = dict(service["spec"]["selector"])
        selector.pop("statefulset.kubernetes.io/pod-name", None)
        found = [pod for _, pod in pods(name) if selects(selector, pod["metadata"]["labels"])]
        assert found, service["metadata"]["name"]
        for pod in found:
            ports = {port["name"] for port in pod["spec"]["containers"][0]["ports"]}
            assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports
    for one in of_kind(objects, "PodDisruptionBudget"):
        assert sum(selects(one["spec"]["selector"]["matchLabels"], found) for found in labels.values()) == 1
    for policy in of_kind(objects, "NetworkPolicy"):
        assert any(selects(policy["spec"]["podSelector"]["matchLabels"], found) for found in labels.values())
    for one in of_kind(objects, "HorizontalPodAutoscaler", "ScaledObject"):
        assert one["spec"]["scaleTargetRef"]["name"] in labels


@every_values
def test_every_volume_that_is_mounted_is_there_and_every_object_that_is_named_is_made_or_yours(name: str) -> None:
    made = {(one["kind"], one["metadata"]["name"]) for one in installed(name)[:-1]}
    yours = {("PersistentVolumeClaim", "speakerd-models")}
    for _, pod in pods(name):
        volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes.keys()
        for volume in volumes.values():
            if claim := volume.get("persistentVolumeClaim"):
                assert ("PersistentVolumeClaim", claim["claimName"]) in made | yours
        assert ("ServiceAccount", pod["spec"]["serviceAccountName"]) in made


@every_values
def test_no_secret_is_in_the_chart(name: str) -> None:
    assert not of_kind(installed(name), "Secret"), "whoever installs makes them"
    for _, pod in pods(name):
        for variable, value in variables(pod["spec"]["containers"][0]).items():
            assert "://" not in value or not re.search(r"://[^/]*:[^/]*@", value), variable
            assert not re.search("PASSWORD|SECRET_|_KEK$|DATABASE_URL|REDIS_URL|ACCESS_KEY", variable), variable


@every_values
def test_nobody_reaches_a_node_but_control_planes_streams_and_scrapers(name: str) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(installed(name), "NetworkPolicy")}
    node = policies["rel-speakerd-node"]
    assert set(node["policyTypes"]) == {"Ingress", "Egress"}
    for rule in node["ingress"]:
        if "fleet" in [port["port"] for port in rule["ports"]]:
            (peer,) = rule["from"]
            assert peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"] == "controlplane"
    to = [port["port"] for rule in node["egress"] for port in rule["ports"]]
    assert sorted(set(to)) == [53, 7601], "a node calls control planes, and asks for names"


def test_nodes_have_a_certificate_each_that_no_other_pod_can_read() -> None:
    (node,) = of_kind(installed("production"), "StatefulSet")
    volumes = {volume["name"]: volume for volume in node["spec"]["template"]["spec"]["volumes"]}
    attributes = volumes["tls"]["csi"]["volumeAttributes"]
    assert attributes["csi.cert-manager.io/uri-sans"] == "spiffe://speakerd.internal/node/${POD_NAME}"
    assert attributes["csi.cert-manager.io/dns-names"] == "${POD_NAME}.node.speakerd.internal"
    (certificate,) = of_kind(installed("production"), "Certificate")
    assert "controlplane.speakerd.internal" in certificate["spec"]["dnsNames"]
    assert certificate["spec"]["uris"] == ["spiffe://speakerd.internal/controlplane/rel-speakerd"]
    assert set(attributes["csi.cert-manager.io/key-usages"].split(",")) == set(certificate["spec"]["usages"])


def test_nodes_are_scaled_by_slots_that_are_in_use_and_by_no_other_figure() -> None:
    documented = set(re.findall(r"speakerd_\w+", (ROOT / "docs" / "metrics.md").read_text()))
    (scaled,) = of_kind(installed("production"), "ScaledObject")
    query = scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert set(re.findall(r"speakerd_\w+", query)) == {"speakerd_node_streams_active", "speakerd_node_streams_limit"}
    assert set(re.findall(r"speakerd_\w+", query)) <= documented
    (node,) = of_kind(installed("production"), "StatefulSet")
    assert "replicas" not in node["spec"], "an upgrade would take back what was scaled"
    made: Objects = json.loads(helm({"autoscaling": {"mode": "hpa"}}).stdout)
    (hpa,) = of_kind(made, "HorizontalPodAutoscaler")
    kubernetes_validate.validate(hpa, KUBERNETES[-1], strict=True)
    assert hpa["spec"]["metrics"][0]["pods"]["metric"]["name"] == "speakerd_node_streams_active"


def test_alerts_in_kubernetes_are_those_of_prometheus() -> None:
    (rule,) = of_kind(installed("production"), "PrometheusRule")
    assert rule["spec"] == yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text())
    (monitor,) = of_kind(installed("production"), "ServiceMonitor")
    jobs = {
        service["metadata"]["labels"][monitor["spec"]["jobLabel"]]
        for service in of_kind(installed("production"), "Service")
        if monitor["spec"]["jobLabel"] in service["metadata"]["labels"]
    }
    assert jobs == {"speakerd-node", "speakerd-controlplane"}


def test_notes_name_every_node_that_wants_a_certificate() -> None:
    notes = installed("air-gapped")[-1]["text"]
    assert "--node rel-speakerd-node-0" in notes and "--node rel-speakerd-node-1" in notes


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"nodes": {}}, "nodes"),
        ({"node": {"device": "gpu"}}, "device"),
        ({"node": {"device": "cuda"}}, "nvidia.com/gpu"),
        ({"controlplane": {"groups": {"all": {"replicas": 2}}}}, "secrets.settings"),
        ({"controlplane": {"groups": {"all": {"replicas": 2}}}, "secrets": {"settings": "s"}}, "ReadWriteMany"),
        ({"controlplane": {"groups": {"all": {"roles": ["grpc", "http"]}}}}, "worker"),
        ({"controlplane": {"groups": {"all": {"roles": ["gprc"]}}}}, "roles"),
        ({"tls": {"mode": "cert-manager"}}, "tls.issuer.name"),
        ({"tls": {"mode": "none"}}, "mode"),
    ],
    ids=lambda value: json.dumps(value) if isinstance(value, dict) else value,
)
def test_values_that_cannot_work_are_refused_by_name(values: dict[str, Any], named: str) -> None:
    assert named in refused(values)
