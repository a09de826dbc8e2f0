"""Checks the manifests: `check.py PROGRAM OVERLAY...`. Run as `cargo xtask deploy-check`.

Every overlay is rendered with kubectl's kustomize and checked three ways: against schemas, against itself (selectors, ports,
volumes, limits), and against the program (every container's arguments are parsed by it, every metric that a dashboard or an
alert names is exported by it).
"""

import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jsonschema
import kubernetes_validate
import yaml

HERE = Path(__file__).parent
VERSION = "1.31"
#: Time between SIGTERM and the end of a coordinator that drains, in seconds: Config::drain_limit, and connections.
DRAIN = 65
#: Made by whoever runs the cluster; the manifests say how.
EXTERNAL = {("Secret", "palimpsest-keys")}


def render(overlay: Path) -> list[dict]:
    text = subprocess.run(["kubectl", "kustomize", overlay], check=True, capture_output=True, text=True).stdout
    return [document for document in yaml.safe_load_all(text) if document]


def pod_specs(documents: list[dict]) -> list[tuple[str, dict, dict]]:
    """(owner, labels, pod spec) of everything that makes pods."""
    found = []
    for document in documents:
        name = f"{document['kind']}/{document['metadata']['name']}"
        if document["kind"] in ("Deployment", "StatefulSet"):
            template = document["spec"]["template"]
        elif document["kind"] == "LeaderWorkerSet":
            template = document["spec"]["leaderWorkerTemplate"]["workerTemplate"]
        else:
            continue
        found.append((name, template["metadata"]["labels"], template["spec"]))
    return found


def check_schemas(documents: list[dict]) -> list[str]:
    problems = []
    for document in documents:
        kind, name = document["kind"], document["metadata"]["name"]
        own = HERE / "schemas" / f"{kind}.json"
        try:
            if own.exists():
                jsonschema.validate(document, json.loads(own.read_text()))
            else:
                kubernetes_validate.validate(document, VERSION, strict=True)
        except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
            problems.append(f"{kind}/{name}: {getattr(error, 'message', error)}")
    for owner, labels, spec in pod_specs(documents):
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x", "labels": labels}, "spec": spec}
        try:
            kubernetes_validate.validate(pod, VERSION, strict=True)
        except kubernetes_validate.ValidationError as error:
            problems.append(f"{owner}: as a pod: {getattr(error, 'message', error)}")
    return problems


def check_references(documents: list[dict]) -> list[str]:
    problems = []
    have = {(d["kind"], d["metadata"]["name"]) for d in documents} | EXTERNAL
    pods = pod_specs(documents)
    claims = {
        (f"StatefulSet/{d['metadata']['name']}", c["metadata"]["name"])
        for d in documents
        if d["kind"] == "StatefulSet"
        for c in d["spec"].get("volumeClaimTemplates", [])
    }

    def selected(labels: dict) -> list[dict]:
        return [spec for _, have_labels, spec in pods if labels.items() <= have_labels.items()]

    for document in documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        selector = {
            "Service": lambda: spec.get("selector"),
            "PodDisruptionBudget": lambda: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda: spec["podSelector"]["matchLabels"],
        }.get(kind, lambda: None)()
        if selector is not None and not selected(selector):
            problems.append(f"{kind}/{name}: selects no pod")
        if kind == "Service":
            ports = {p["name"] for s in selected(selector) for c in s["containers"] for p in c.get("ports", [])}
            problems += [
                f"Service/{name}: no pod has the port {p['targetPort']}" for p in spec["ports"] if p["targetPort"] not in ports
            ]
        if kind == "ServiceMonitor":
            services = [d for d in documents if d["kind"] == "Service"]
            wanted = spec["selector"]["matchLabels"].items()
            matching = [s for s in services if wanted <= s["metadata"].get("labels", {}).items()]
            ports = {p["name"] for s in matching for p in s["spec"]["ports"]}
            problems += [f"{kind}/{name}: no service has the port {e['port']}" for e in spec["endpoints"] if e["port"] not in ports]
    for owner, _, spec in pods:
        problems += check_pod(owner, spec, have, claims)
    return problems


def check_pod(owner: str, spec: dict, have: set, claims: set) -> list[str]:
    problems = []
    volumes = {v["name"] for v in spec.get("volumes", [])} | {name for o, name in claims if o == owner}
    for volume in spec.get("volumes", []):
        for field, key, kind in (
            ("secret", "secretName", "Secret"),
            ("configMap", "name", "ConfigMap"),
            ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim"),
        ):
            if field in volume and (kind, volume[field][key]) not in have:
                problems.append(f"{owner}: there is no {kind} {volume[field][key]}")
    for container in spec["containers"]:
        where = f"{owner}/{container['name']}"
        ports = {p["name"] for p in container.get("ports", [])} | {p["containerPort"] for p in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            for action in ("httpGet", "grpc", "tcpSocket"):
                port = container.get(probe, {}).get(action, {}).get("port")
                if port is not None and port not in ports:
                    problems.append(f"{where}: {probe} asks port {port}, which it does not have")
        for source in container.get("envFrom", []):
            for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
                if field in source and (kind, source[field]["name"]) not in have:
                    problems.append(f"{where}: there is no {kind} {source[field]['name']}")
        problems += [
            f"{where}: mounts {m['name']}, which is no volume" for m in container.get("volumeMounts", []) if m["name"] not in volumes
        ]
        if "requests" not in container.get("resources", {}) or "memory" not in container["resources"].get("limits", {}):
            problems.append(f"{where}: has no resource requests or no memory limit")
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or not spec.get("securityContext", {}).get("runAsNonRoot"):
            problems.append(f"{where}: may become root")
        sleep = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        grace = spec.get("terminationGracePeriodSeconds", 30)
        if "coordinator" in container.get("args", []) and grace < sleep + DRAIN:
            problems.append(f"{where}: {grace} s of grace do not cover {sleep} s of preStop and {DRAIN} s of drain")
    return problems


def check_arguments(program: str, documents: list[dict]) -> list[str]:
    """Whether the program knows every argument and variable. `--help` behind them: they are parsed, and nothing is started."""
    problems = []
    maps = {d["metadata"]["name"]: d.get("data", {}) for d in documents if d["kind"] == "ConfigMap"}
    for owner, _, spec in pod_specs(documents):
        for container in spec["containers"]:
            args = container.get("args", [])
            if container.get("command") or not args:
                continue
            ran = subprocess.run([program, *args, "--help"], capture_output=True, text=True)
            if ran.returncode != 0:
                problems.append(f"{owner}: {ran.stderr.strip().splitlines()[0]}")
                continue
            known = set(re.findall(r"\[env: (PALIMPSEST_[A-Z_]+)", ran.stdout)) | {"PALIMPSEST_CACHE"}
            names = {e["name"] for e in container.get("env", [])}
            for source in container.get("envFrom", []):
                names |= set(maps.get(source.get("configMapRef", {}).get("name"), {}))
            # A map is shared by all of a group: what one of them does not know is another's.
            shared = {"PALIMPSEST_GROUP", "PALIMPSEST_TP", "PALIMPSEST_ETCD", "PALIMPSEST_CACHE"}
            odd = {n for n in names if n.startswith("PALIMPSEST_")} - known - shared
            problems += [f"{owner}: the program does not know the variable {name}" for name in sorted(odd)]
    return problems


def names_of_metrics() -> set[str]:
    text = (HERE / "monitoring" / "dashboard.json").read_text() + (HERE / "monitoring" / "monitor.yaml").read_text()
    return set(re.findall(r"palimpsest_[a-z_]+", text))


def check_metrics(program: str) -> list[str]:
    """Starts a server on the tiny machine that this is, and asks it for its metrics and probes."""
    listen, http = "127.0.0.1:50951", "127.0.0.1:50980"
    # Logs must not hold the server up when nobody reads them.
    server = subprocess.Popen([program, "serve", "--listen", listen, "--http", http], stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            try:
                if get(http, "/readyz") == "ready":
                    break
            except OSError:
                pass
            if server.poll() is not None:
                return ["`serve` ended before it was ready"]
            time.sleep(0.1)
        body = json.dumps({"prompt": "a", "max_tokens": 1}).encode()
        request = urllib.request.Request(f"http://{http}/v1/completions", body, {"content-type": "application/json"})
        urllib.request.urlopen(request, timeout=60).read()
        exported = set(re.findall(r"^(palimpsest_[a-z_]+)", get(http, "/metrics"), re.MULTILINE))
        problems = [f"nobody exports {name}" for name in sorted(names_of_metrics() - exported)]
        started = time.monotonic()
        server.terminate()
        server.wait(timeout=30)
        print(f"    drained and ended within {time.monotonic() - started:.1f} s of SIGTERM")
        return problems + ([] if server.returncode == 0 else [f"`serve` ended with {server.returncode} on SIGTERM"])
    finally:
        server.kill()


def get(host: str, path: str) -> str:
    return urllib.request.urlopen(f"http://{host}{path}", timeout=5).read().decode()


def main(program: str, overlays: list[str]) -> int:
    failed = False
    for overlay in overlays:
        documents = render(Path(overlay))
        problems = check_schemas(documents) + check_references(documents) + check_arguments(program, documents)
        print(f"    {overlay}: {len(documents)} objects, {len(problems)} problems")
        for problem in problems:
            print(f"      {problem}")
        failed |= bool(problems)
    problems = check_metrics(program)
    print(f"    {len(names_of_metrics())} metrics named by dashboard and alerts, {len(problems)} problems")
    for problem in problems:
        print(f"      {problem}")
    return 1 if failed or problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
