"""Writes the schemas of this folder from checkouts of the repositories that README.md names.

python tests/docker/schemas/make.py COMPOSE_SPEC KUBERAY KUBERNETES_CLIENT_PYTHON

Each is the path of a repository, bare or not; its HEAD is read. The Compose schema is kept as it
is. Of the others, only what the files under docker/ use is kept: the spec of a RayJob of version
v1, and the definitions that the Kubernetes kinds in ``KINDS`` reach; without descriptions.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent
KINDS = (
    "io.k8s.api.batch.v1.CronJob",
    "io.k8s.api.core.v1.ServiceAccount",
    "io.k8s.api.rbac.v1.Role",
    "io.k8s.api.rbac.v1.RoleBinding",
)


def shown(repository: str, path: str) -> str:
    """A file as HEAD has it."""
    command = ["git", "-C", repository, "show", f"HEAD:{path}"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def without_descriptions(schema: Any, names: bool = False) -> Any:
    """The schema without its descriptions. ``names``: its keys are names of fields, not words."""
    if isinstance(schema, list):
        return [without_descriptions(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: without_descriptions(value, key in ("properties", "definitions") and not names)
        for key, value in schema.items()
        if names or key != "description" or not isinstance(value, str)
    }


def reached(schema: Any) -> set[str]:
    """The names of the definitions that a schema refers to."""
    if isinstance(schema, list):
        return set().union(*map(reached, schema)) if schema else set()
    if not isinstance(schema, dict):
        return set()
    own = {schema["$ref"].rpartition("/")[2]} if isinstance(schema.get("$ref"), str) else set()
    return own.union(*map(reached, schema.values()))


def rayjob(kuberay: str) -> dict:
    definition = yaml.safe_load(shown(kuberay, "ray-operator/config/crd/bases/ray.io_rayjobs.yaml"))
    (version,) = (one for one in definition["spec"]["versions"] if one["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    del schema["properties"]["status"]
    return schema


def kubernetes(client: str) -> dict:
    every = json.loads(shown(client, "kubernetes/swagger.json.unprocessed"))["definitions"]
    kept: dict[str, Any] = {}
    left = set(KINDS)
    while left:
        name = left.pop()
        kept[name] = every[name]
        left |= reached(every[name]) - kept.keys()
    return {"definitions": dict(sorted(kept.items()))}


def main(compose_spec: str, kuberay: str, client: str) -> None:
    whole = shown(compose_spec, "schema/compose-spec.json")
    (HERE / "compose-spec.json").write_text(whole, encoding="utf-8")
    for name, schema in (("rayjob.json", rayjob(kuberay)), ("kubernetes.json", kubernetes(client))):
        text = json.dumps(without_descriptions(schema), separators=(",", ":"), sort_keys=True)
        (HERE / name).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
