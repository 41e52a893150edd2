"""The files under docker/ fit their schemas and each other. None of them can be run here."""

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tgate_batch import __version__

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
SCHEMAS = Path(__file__).parent / "schemas"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSION = __version__
NIGHTLY = list(yaml.safe_load_all((DOCKER / "k8s" / "nightly.yaml").read_text()))
RAYJOB = yaml.safe_load((DOCKER / "k8s" / "rayjob.yaml").read_text())
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text())
COMPOSE_SCHEMA = json.loads((SCHEMAS / "compose-spec.json").read_text())
DOCKERFILE = (DOCKER / "Dockerfile").read_text()


def strict(schema: Any) -> Any:
    """A schema of Kubernetes that refuses unknown fields, as `kubectl apply` does."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    if isinstance(schema.get("properties"), dict) and "additionalProperties" not in schema:
        made["additionalProperties"] = False
    return made


def schema_of(manifest: dict) -> dict:
    """The schema of a manifest, by its kind."""
    if manifest["kind"] == "RayJob":
        schema = strict(json.loads((SCHEMAS / "rayjob.json").read_text()))
        schema["properties"]["metadata"] = {"$ref": "#/definitions/metadata"}
        name = {"type": "string", "maxLength": 47}  # KubeRay's own limit
        metadata = {"properties": {"name": name}, "additionalProperties": False}
        return schema | {"definitions": {"metadata": metadata}}
    definitions = strict(json.loads((SCHEMAS / "kubernetes.json").read_text())["definitions"])
    kind = {"group": "", "version": "", "kind": manifest["kind"]}
    group, _, version = manifest["apiVersion"].rpartition("/")
    kind |= {"group": group, "version": version}
    (name,) = (
        name
        for name, one in definitions.items()
        if kind in one.get("x-kubernetes-group-version-kind", [])
    )
    return {"$ref": f"#/definitions/{name}", "definitions": definitions}


def faults(manifest: Any, schema: dict) -> list[str]:
    check = jsonschema.Draft7Validator(schema)
    return [f"{error.json_path}: {error.message}" for error in check.iter_errors(manifest)]


def changed(value: Any, path: str, new: Any) -> Any:
    """A copy with another value at a dotted path."""
    copy = json.loads(json.dumps(value))
    *parents, last = (int(key) if key.isdecimal() else key for key in path.split("/"))
    inner = copy
    for key in parents:
        inner = inner[key]
    inner[last] = new
    return copy


def pods(manifest: dict) -> list[dict]:
    """The specs of all pods that a manifest describes."""
    if manifest["kind"] == "CronJob":
        return [manifest["spec"]["jobTemplate"]["spec"]["template"]["spec"]]
    if manifest["kind"] == "RayJob":
        cluster = manifest["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        return [group["template"]["spec"] for group in groups]
    return []


@pytest.mark.parametrize("manifest", [RAYJOB, *NIGHTLY], ids=lambda manifest: manifest["kind"])
def test_manifest_fits_its_schema(manifest):
    assert faults(manifest, schema_of(manifest)) == []


def test_compose_file_fits_its_schema():
    assert faults(COMPOSE, COMPOSE_SCHEMA) == []


HEAD = "spec/rayClusterSpec/headGroupSpec"


@pytest.mark.parametrize(
    ("manifest", "path", "new"),
    [
        (RAYJOB, "spec/entryPoint", "python"),
        (RAYJOB, "spec/backoffLimit", "2"),
        (RAYJOB, "spec/rayClusterSpec/authOptions/mode", "password"),
        (RAYJOB, f"{HEAD}/rayStartParams/num-cpus", 0),
        (RAYJOB, f"{HEAD}/template/spec/containers/0/envFrom/0/secret", "x"),
        (RAYJOB, "metadata/name", "x" * 48),
        (NIGHTLY[0], "spec/concurency", "Forbid"),
        (NIGHTLY[0], "spec/schedule", 5),
        (NIGHTLY[0], "spec/jobTemplate/spec/template/spec/volumes/0/name", None),
        (NIGHTLY[2], "rules/0/verbs", "get"),
    ],
)
def test_planted_mistake_in_a_manifest_is_found(manifest, path, new):
    assert len(faults(changed(manifest, path, new), schema_of(manifest))) == 1


@pytest.mark.parametrize(
    ("path", "new"), [("services/head/comand", "x"), ("services/worker/deploy/replicas", [2])]
)
def test_planted_mistake_in_the_compose_file_is_found(path, new):
    assert faults(changed(COMPOSE, path, new), COMPOSE_SCHEMA) != []


def test_cluster_of_compose_is_a_head_and_two_workers_that_share_a_token():
    services = COMPOSE["services"]
    assert services["worker"]["deploy"]["replicas"] == 2
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert service["secrets"] == ["ray_token"]
    assert services["head"]["ports"] == ["127.0.0.1:8265:8265"]
    assert "docker/ray_token" in (ROOT / ".gitignore").read_text().splitlines()
    assert "docker/ray_token" in (ROOT / ".dockerignore").read_text().splitlines()


def test_nights_do_not_overlap_and_end_before_the_next():
    spec = NIGHTLY[0]["spec"]
    waits = spec["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert RAYJOB["spec"]["activeDeadlineSeconds"] < waits < 24 * 3600


def test_workers_have_a_gpu_go_to_spot_nodes_and_have_room_in_shared_memory():
    (group,) = RAYJOB["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    spec = group["template"]["spec"]
    (container,) = spec["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    keys = {toleration["key"] for toleration in spec["tolerations"]}
    assert {"nvidia.com/gpu", "cloud.google.com/gke-spot"} <= keys
    mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    memory = {volume["name"]: volume["emptyDir"].get("medium") for volume in spec["volumes"]}
    assert mounted.keys() == memory.keys()
    assert (mounted["shared-memory"], memory["shared-memory"]) == ("/dev/shm", "Memory")


@pytest.mark.parametrize("manifest", [RAYJOB, NIGHTLY[0]], ids=lambda manifest: manifest["kind"])
def test_pods_run_unprivileged_and_name_their_secrets_only(manifest):
    for pod in pods(manifest):
        for container in pod["containers"]:
            allowed = container["securityContext"]
            assert allowed["runAsNonRoot"]
            assert allowed["allowPrivilegeEscalation"] is False
            assert all("value" not in variable for variable in container.get("env", []))
    assert not re.search(r"AKIA|BEGIN|password", json.dumps(manifest))


def test_role_allows_what_the_submitter_does_and_no_more():
    cron, account, role, binding = NIGHTLY
    (rule,) = role["rules"]
    assert (rule["resources"], rule["verbs"]) == (["rayjobs"], ["create", "get"])
    (subject,) = binding["subjects"]
    names = {subject["name"], account["metadata"]["name"], pods(cron)[0]["serviceAccountName"]}
    assert len(names) == 1
    assert binding["roleRef"]["name"] == role["metadata"]["name"]


def test_versions_are_those_of_the_package():
    locked = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line
    )
    assert RAYJOB["spec"]["rayClusterSpec"]["rayVersion"] == locked["ray"]
    images = [
        box["image"]
        for one in (RAYJOB, NIGHTLY[0])
        for pod in pods(one)
        for box in pod["containers"]
    ]
    images += [service["image"] for service in COMPOSE["services"].values()]
    assert {image.rpartition("/")[2] for image in images} == {f"tgate-batch:{VERSION}"}
    said = DOCKERFILE + (DOCKER / "README.md").read_text()
    assert set(re.findall(r"tgate-batch:([\d.]+)", said)) == {VERSION}


def instructions(name: str) -> list[str]:
    """What follows an instruction's name in the Dockerfile, its lines joined."""
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^#.*\n", "", DOCKERFILE, flags=re.MULTILINE))
    return [line.split(None, 1)[1] for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_every_file_that_the_image_takes_is_there_and_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().split()
    for copy in instructions("COPY"):
        *sources, _ = copy.split()
        for source in sources:
            assert (ROOT / source).exists()
            assert source.partition("/")[0] not in ignored
            assert source not in ignored


def test_what_is_built_into_the_wheel_is_there_before_it_is_built():
    """Hatch takes these paths of the checkout into the wheel."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    wheel = build["targets"]["wheel"]
    taken = [*wheel["packages"], *wheel.get("force-include", {})]
    before = DOCKERFILE.partition("uv pip install --system --constraint constraints.txt .")[0]
    assert [path for path in taken if f"COPY {path} " not in before] == []


def test_base_image_has_a_version():
    (base,) = instructions("FROM")
    python = dict(one.split("=", 1) for one in instructions("ARG") if "=" in one)["PYTHON"]
    image, _, tag = base.replace("${PYTHON}", python).partition(":")
    assert (image, tag) == ("python", "3.12-slim-trixie")


def test_every_install_keeps_to_the_constraints():
    for run in instructions("RUN"):
        for install in re.findall(r"pip install[^&;]*", run):
            assert "--constraint constraints.txt" in install
    assert sum("pip install" in run for run in instructions("RUN")) == 1


def test_any_command_runs_in_the_image_as_any_user():
    assert instructions("ENTRYPOINT") == []
    assert instructions("USER") == ["1000"]  # a number: runAsNonRoot compares it with 0
    (command,) = instructions("CMD")
    assert json.loads(command)[0] in PROJECT["scripts"]
    environment = dict(pair.split("=", 1) for env in instructions("ENV") for pair in env.split())
    (made,) = (run for run in instructions("RUN") if "-m 1777" in run)
    everybodys = made.partition("-m 1777")[2].split()
    written = (environment["HOME"], environment["HF_HOME"], *json.loads(instructions("VOLUME")[0]))
    assert all(any(path.startswith(one) for one in everybodys) for path in written)
    assert environment["USER"]  # getpass needs it where the number has no name


def test_readme_says_that_none_of_it_was_run_and_names_files_that_exist():
    said = (DOCKER / "README.md").read_text()
    assert "The authors have not run anything in this folder" in said
    named = re.findall(r"docker/[\w/]+\.\w+|docker/Dockerfile|jobs/\w+\.py|configs/\w+\.yaml", said)
    assert len(set(named)) >= 6
    made_by_a_run = "docker/out/"
    missing = [one for one in named if not (ROOT / one).exists()]
    assert [one for one in missing if not one.startswith(made_by_a_run)] == []
