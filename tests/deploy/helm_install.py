"""`helm install`, by Helm's own code, into a cluster that is none.

    python helm_install.py LIBRARY CHART NAMESPACE RELEASE < values as JSON > what was made, as a JSON list

Helm's SDK comes as a shared library in the PyPI package helm-sdkpy (its Python needs 3.12; its library is called here
through ctypes). It loads, checks values against the schema, renders, and then wants a cluster: a small HTTP server
answers as the API server would for as much as an installation asks, and keeps each object that it is given. Helm then
waits for pods to become ready, which is where this ends. A process of its own, because a Go runtime comes with the
library. Exit code 1 with Helm's message when it refuses.
"""

from __future__ import annotations

import base64
import ctypes
import gzip
import http.server
import json
import os
import re
import sys
import tempfile
import threading
from typing import Any, ClassVar

KINDS = {
    "v1": {
        "ConfigMap": "configmaps", "PersistentVolumeClaim": "persistentvolumeclaims", "Secret": "secrets",
        "Service": "services", "ServiceAccount": "serviceaccounts",
    },
    "apps/v1": {"Deployment": "deployments", "StatefulSet": "statefulsets"},
    "autoscaling/v2": {"HorizontalPodAutoscaler": "horizontalpodautoscalers"},
    "cert-manager.io/v1": {"Certificate": "certificates"},
    "keda.sh/v1alpha1": {"ScaledObject": "scaledobjects"},
    "monitoring.coreos.com/v1": {"PrometheusRule": "prometheusrules", "ServiceMonitor": "servicemonitors"},
    "networking.k8s.io/v1": {"Ingress": "ingresses", "NetworkPolicy": "networkpolicies"},
    "policy/v1": {"PodDisruptionBudget": "poddisruptionbudgets"},
}  # fmt: skip
PLURALS = {plural for kinds in KINDS.values() for plural in kinds.values()}
JSON = "application/json"
VERSION = {"major": "1", "minor": "31", "gitVersion": "v1.31.0"}
ABSENT = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


class Cluster(http.server.BaseHTTPRequestHandler):
    """The API server, as far as `helm install` asks."""

    protocol_version = "HTTP/1.1"
    made: ClassVar[list[dict[str, Any]]] = []
    notes = ""
    waits = threading.Event()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0].rstrip("/")
        group = path.removeprefix("/apis/").removeprefix("/api/")
        if path == "/version":
            self._say(VERSION)
        elif path == "/api":
            self._say({"kind": "APIVersions", "versions": ["v1"]})
        elif path == "/apis":
            self._say({"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(g) for g in KINDS if "/" in g]})
        elif group in KINDS:
            self._say({
                "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group,
                "resources": [
                    {"name": plural, "singularName": "", "kind": kind, "namespaced": True, "verbs": ["create", "get"]}
                    for kind, plural in KINDS[group].items()
                ],
            })  # fmt: skip
        elif path.endswith("/secrets"):
            self._say({"kind": "SecretList", "apiVersion": "v1", "items": []})
        elif path.rpartition("/")[2] in PLURALS:
            Cluster.waits.set()  # it lists what it has made, to see whether that is ready
            self._say(ABSENT, 404)
        else:
            self._say(ABSENT, 404)

    def do_POST(self) -> None:
        self._take(201)

    def do_PUT(self) -> None:
        self._take(200)

    def do_PATCH(self) -> None:
        self._take(200)

    def _take(self, code: int) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        kind = self.headers.get("Content-Type", JSON)
        if "protobuf" not in kind:
            self.made.append(json.loads(body))
            kind = JSON
        elif record := re.search(rb"H4sI[A-Za-z0-9+/=]+", body):
            # Helm's own record of the release: a Secret, given back as it came.
            Cluster.notes = json.loads(gzip.decompress(base64.b64decode(record[0])))["info"].get("notes", "")
        self._answer(code, kind, body)

    def _say(self, what: dict[str, Any], code: int = 200) -> None:
        self._answer(code, JSON, json.dumps(what).encode())

    def _answer(self, code: int, kind: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, *_: object) -> None:
        """Nothing."""


def _group(version: str) -> dict[str, Any]:
    name, _, short = version.partition("/")
    one = {"groupVersion": version, "version": short}
    return {"name": name, "versions": [one], "preferredVersion": one}


def install(library: str, chart: str, namespace: str, release: str, values: str) -> None:
    """Install, and return once everything is made. Raises SystemExit with Helm's message."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cluster)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    helm = ctypes.CDLL(library)
    helm.helm_sdkpy_last_error.restype = ctypes.c_char_p
    handle, said, failed = ctypes.c_ulonglong(), ctypes.c_char_p(), []
    with tempfile.NamedTemporaryFile("w", suffix=".json") as kubeconfig:
        json.dump({
            "apiVersion": "v1", "kind": "Config", "current-context": "none", "users": [{"name": "nobody", "user": {}}],
            "clusters": [{"name": "none", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
            "contexts": [{"name": "none", "context": {"cluster": "none", "user": "nobody"}}],
        }, kubeconfig)  # fmt: skip
        kubeconfig.flush()

        def run() -> None:
            # The library keeps its last error for the thread that made it.
            place = namespace.encode(), kubeconfig.name.encode(), b"none", b"{}"
            what = release.encode(), chart.encode(), values.encode(), b"", b"{}"
            if helm.helm_sdkpy_config_create(*place, ctypes.byref(handle)) or helm.helm_sdkpy_install(
                handle, *what, ctypes.byref(said)
            ):
                failed.append((helm.helm_sdkpy_last_error() or b"no message").decode())
            Cluster.waits.set()

        threading.Thread(target=run, daemon=True).start()
        Cluster.waits.wait()
    if failed:
        raise SystemExit(failed[0])


if __name__ == "__main__":
    install(*sys.argv[1:5], sys.stdin.read())
    json.dump([*Cluster.made, {"kind": "Notes", "text": Cluster.notes}], sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # Helm goes on waiting
