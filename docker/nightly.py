"""Submits a RayJob for one night and waits for its end; run by the pod of k8s/nightly.yaml.

python docker/nightly.py MANIFEST

MANIFEST is a RayJob such as k8s/rayjob.yaml. The night's date is added to its name and its
--output. It is the date for which the CronJob planned the Job: the Job is named NAME-<minutes since
1970>, and $JOB_NAME has this name. So a retried pod, even after midnight, finds the RayJob of the
first try and waits for it. The exit code is 0 if the RayJob succeeded, else 1.
"""

import json
import os
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ENDED = ("Complete", "Failed", "ValidationFailed")  # KubeRay's final states of a RayJob
SECONDS_BETWEEN_LOOKS = 30.0
MOST_FAILURES = 20  # consecutive requests without an answer
_OUTPUT = re.compile(r"(--output[ =])(\S+)")


class Api:
    """The RayJobs of this pod's namespace, over the cluster's API."""

    def __init__(self, server: str, account: Path = ACCOUNT):
        namespace = (account / "namespace").read_text().strip()
        self._url = f"{server}/apis/ray.io/v1/namespaces/{namespace}/rayjobs"
        self._account = account
        self._trusted = None
        if server.startswith("https:"):
            self._trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))

    def create(self, manifest: dict[str, Any]) -> bool:
        """Creates a RayJob; returns False if it exists already."""
        try:
            self._ask("", json.dumps(manifest).encode())
        except urllib.error.HTTPError as error:
            if error.code != 409:
                raise
            return False
        return True

    def status(self, name: str) -> dict[str, Any]:
        return self._ask(f"/{name}").get("status") or {}

    def _ask(self, path: str, content: bytes | None = None) -> dict[str, Any]:
        token = (self._account / "token").read_text().strip()  # Kubernetes renews it periodically
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, content, headers)
        with urllib.request.urlopen(request, timeout=30, context=self._trusted) as answer:
            return json.load(answer)


def night_of(job: str, now: datetime) -> str:
    """Returns the UTC date for which a CronJob planned the Job; today's for a Job made by hand."""
    minutes = job.rpartition("-")[2]
    planned = minutes.isdecimal() and len(minutes) == 8
    return (datetime.fromtimestamp(int(minutes) * 60, UTC) if planned else now).date().isoformat()


def of_night(manifest: dict[str, Any], night: str) -> dict[str, Any]:
    """Returns the RayJob with the night's date in name and output; ValueError without output."""
    entrypoint, count = _OUTPUT.subn(
        lambda option: option[1] + _within(option[2], night), manifest["spec"]["entrypoint"]
    )
    if count != 1:
        raise ValueError("the RayJob's entrypoint needs one --output, which gets the night's date")
    metadata = manifest["metadata"] | {"name": f"{manifest['metadata']['name']}-{night}"}
    return manifest | {
        "metadata": metadata,
        "spec": manifest["spec"] | {"entrypoint": entrypoint},
    }


def _within(place: str, name: str) -> str:
    """Returns a folder in a path or URI, quoted or not; a URI's query stays at its end."""
    quote = place[0] if place[0] in "\"'" and place.endswith(place[0]) else ""
    place = place.strip(quote) if quote else place
    path, mark, query = place.partition("?") if "://" in place else (place, "", "")
    return f"{quote}{path.rstrip('/')}/{name}{mark}{query}{quote}"


def ended(api: Api, name: str, pause: float = SECONDS_BETWEEN_LOOKS) -> dict[str, Any]:
    """Waits for the end of a RayJob and returns its status; OSError in a long outage of the API."""
    failures = 0
    while True:
        try:
            status = api.status(name)
            failures = 0
        except OSError as error:
            gone = isinstance(error, urllib.error.HTTPError) and error.code == 404
            failures += 1
            if gone or failures == MOST_FAILURES:
                raise
            status = {}
        if status.get("jobDeploymentStatus") in ENDED:
            return status
        time.sleep(pause)


def main(manifest: str, api: Api, job: str, pause: float = SECONDS_BETWEEN_LOOKS) -> int:
    wanted = of_night(yaml.safe_load(Path(manifest).read_text()), night_of(job, datetime.now(UTC)))
    name = wanted["metadata"]["name"]
    print(f"{name}: {'submitted' if api.create(wanted) else 'was submitted before'}", flush=True)
    status = ended(api, name, pause)
    print(f"{name}: {status.get('jobStatus')} {status.get('message', '')}".rstrip(), flush=True)
    return 0 if status.get("jobStatus") == "SUCCEEDED" else 1


if __name__ == "__main__":
    server = "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}".format(**os.environ)
    sys.exit(main(sys.argv[1], Api(server), os.environ.get("JOB_NAME", "")))
