"""Reads rendered manifests from stdin, checks each against its schema, and prints {"documents",
"problems"} as JSON.

Kubernetes' own kinds are checked against the schemas of the package kubernetes-validate, strictly:
an unknown field is a problem. Custom resources are checked against the reduced schemas beside this
file; the pod templates within them against Kubernetes' schema of a PodTemplate. Started by `cargo
xtask deploy-check`.
"""

import json
import pathlib
import sys

import jsonschema
import kubernetes_validate
import yaml

KUBERNETES = "1.34"
CUSTOM = {
    ("leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"): "leaderworkerset.json",
    ("monitoring.coreos.com/v1", "ServiceMonitor"): "servicemonitor.json",
    ("monitoring.coreos.com/v1", "PrometheusRule"): "prometheusrule.json",
}


def builtin_problems(document):
    try:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        yield f"{'.'.join(map(str, error.path))}: {error.message}"
    except (
        kubernetes_validate.SchemaNotFoundError,
        kubernetes_validate.InvalidSchemaError,
    ) as error:
        yield f"no schema: {error}"


def custom_problems(document, schema):
    for error in jsonschema.Draft202012Validator(schema).iter_errors(document):
        yield f"{error.json_path}: {error.message}"
    templates = document.get("spec", {}).get("leaderWorkerTemplate", {})
    for name in ("leaderTemplate", "workerTemplate"):
        if name in templates:
            pod = {
                "apiVersion": "v1",
                "kind": "PodTemplate",
                "metadata": {"name": name},
                "template": templates[name],
            }
            for problem in builtin_problems(pod):
                yield f"{name}: {problem}"


def main():
    here = pathlib.Path(__file__).parent
    documents = [document for document in yaml.safe_load_all(sys.stdin) if document]
    problems = []
    for document in documents:
        kind = document.get("kind", "?")
        name = f"{kind}/{document.get('metadata', {}).get('name', '?')}"
        schema = CUSTOM.get((document.get("apiVersion"), kind))
        if schema:
            found = custom_problems(document, json.loads((here / schema).read_text()))
        else:
            found = builtin_problems(document)
        problems.extend(f"{name}: {problem}" for problem in found)
    json.dump({"documents": documents, "problems": problems}, sys.stdout)


if __name__ == "__main__":
    main()
