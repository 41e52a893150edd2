"""docker/nightly.py against a server that answers as Kubernetes' API does."""

import importlib.util
import json
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
RAYJOB = ROOT / "docker" / "k8s" / "rayjob.yaml"
spec = importlib.util.spec_from_file_location("nightly", ROOT / "docker" / "nightly.py")
nightly = importlib.util.module_from_spec(spec)
spec.loader.exec_module(nightly)

NOW = datetime(2026, 2, 1, 0, 30, tzinfo=UTC)
JOB = f"tgate-batch-nightly-{int(datetime(2026, 1, 31, 1, tzinfo=UTC).timestamp()) // 60}"
PLACE = "/apis/ray.io/v1/namespaces/pictures/rayjobs"


class Cluster(ThreadingHTTPServer):
    """Holds RayJobs by name, and gives each its states, one a look; an int: an HTTP error."""

    def __init__(self, states: list):
        super().__init__(("127.0.0.1", 0), Answer)
        self.states = states
        self.jobs: dict[str, dict] = {}
        self.tokens: set[str] = set()
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Answer(BaseHTTPRequestHandler):
    server: Cluster

    def do_POST(self):
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = job["metadata"]["name"]
        taken = name in self.server.jobs
        self.server.jobs.setdefault(name, job)
        self.answer(409 if taken or self.path != PLACE else 201, job)

    def do_GET(self):
        name = self.path.removeprefix(f"{PLACE}/")
        states = self.server.states
        state = states.pop(0) if len(states) > 1 else states[0]
        if name not in self.server.jobs:
            self.answer(404, {})
        elif isinstance(state, int):
            self.answer(state, {})
        else:
            self.answer(200, {**self.server.jobs[name], "status": state})

    def answer(self, code: int, content: dict) -> None:
        self.server.tokens.add(self.headers["Authorization"])
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *_):
        pass


RUNNING = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}
DONE = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
FAILED = {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 3"}


@pytest.fixture
def cluster(request):
    server = Cluster(list(request.param))
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def api(cluster, tmp_path):
    (tmp_path / "namespace").write_text("pictures\n")
    (tmp_path / "token").write_text("secret\n")
    return nightly.Api(f"http://127.0.0.1:{cluster.server_port}", tmp_path)


@pytest.mark.parametrize(
    ("job", "night"),
    [
        (JOB, "2026-01-31"),  # planned for 1:00, and started after the next midnight
        ("tgate-batch-now", "2026-02-01"),  # by hand
        ("", "2026-02-01"),
        ("tgate-batch-2026", "2026-02-01"),
    ],
)
def test_night_is_the_planned_one(job, night):
    assert nightly.night_of(job, NOW) == night


def test_name_and_output_get_the_date_and_nothing_else_changes():
    manifest = yaml.safe_load(RAYJOB.read_text())
    found = nightly.of_night(manifest, "2026-01-31")
    assert found["metadata"]["name"] == "tgate-batch-sdxl-2026-01-31"
    assert found["spec"]["entrypoint"] == f"{manifest['spec']['entrypoint']}/2026-01-31"
    assert found["spec"]["entrypoint"].endswith("--output s3://BUCKET/sdxl/2026-01-31")
    assert found["spec"] | {"entrypoint": ""} == manifest["spec"] | {"entrypoint": ""}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ("x --output s3://b/a/ --set c=1", "x --output s3://b/a/2026-01-31 --set c=1"),
        ("x --output=/out/a", "x --output=/out/a/2026-01-31"),
        (
            "x --output s3://b/a?endpoint_override=minio:9000&scheme=http --set c=1",
            "x --output s3://b/a/2026-01-31?endpoint_override=minio:9000&scheme=http --set c=1",
        ),
        (
            "x --output 's3://b/a/?endpoint_override=minio:9000&scheme=http'",
            "x --output 's3://b/a/2026-01-31?endpoint_override=minio:9000&scheme=http'",
        ),
        ('x --output="/out/a?"', 'x --output="/out/a?/2026-01-31"'),
    ],
)
def test_output_is_found_where_it_stands(given, made):
    manifest = {"metadata": {"name": "n"}, "spec": {"entrypoint": given}}
    assert nightly.of_night(manifest, "2026-01-31")["spec"]["entrypoint"] == made


def test_manifest_without_an_output_is_refused():
    with pytest.raises(ValueError, match="needs one --output"):
        nightly.of_night({"metadata": {"name": "n"}, "spec": {"entrypoint": "x"}}, "2026-01-31")


@pytest.mark.parametrize("cluster", [[{}, RUNNING, 503, RUNNING, DONE]], indirect=True)
def test_rayjob_is_submitted_and_waited_for(cluster, api, capsys):
    assert nightly.main(str(RAYJOB), api, JOB, pause=0) == 0
    assert list(cluster.jobs) == ["tgate-batch-sdxl-2026-01-31"]
    assert cluster.tokens == {"Bearer secret"}
    assert capsys.readouterr().out.splitlines() == [
        "tgate-batch-sdxl-2026-01-31: submitted",
        "tgate-batch-sdxl-2026-01-31: SUCCEEDED",
    ]


@pytest.mark.parametrize("cluster", [[RUNNING, DONE]], indirect=True)
def test_second_try_waits_for_the_rayjob_of_the_first(cluster, api, capsys):
    assert api.create(nightly.of_night(yaml.safe_load(RAYJOB.read_text()), "2026-01-31"))
    assert nightly.main(str(RAYJOB), api, JOB, pause=0) == 0
    assert len(cluster.jobs) == 1
    assert "was submitted before" in capsys.readouterr().out


@pytest.mark.parametrize("cluster", [[RUNNING, FAILED]], indirect=True)
def test_failed_run_fails_the_night_with_its_reason(cluster, api, capsys):
    assert nightly.main(str(RAYJOB), api, JOB, pause=0) == 1
    assert "FAILED exit code 3" in capsys.readouterr().out


@pytest.mark.parametrize("cluster", [[503]], indirect=True)
def test_api_that_stays_away_ends_the_wait(cluster, api):
    with pytest.raises(OSError, match="503"):
        nightly.main(str(RAYJOB), api, JOB, pause=0)


@pytest.mark.parametrize("cluster", [[RUNNING]], indirect=True)
def test_rayjob_that_was_deleted_ends_the_wait(cluster, api):
    with pytest.raises(OSError, match="404"):
        nightly.ended(api, "gone", pause=0)
