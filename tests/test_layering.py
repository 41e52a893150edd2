"""The import directions of the package, as a table; a bad import fails here."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "tgate_batch"

# module -> which of ours it may import (itself always).
ALLOWED = {
    "errors": set(),
    "gate": set(),
    "records": set(),
    "config": {"gate", "errors"},
    "timing": set(),
    "demo": {"config", "gate", "metrics", "timing"},
    "stages": set(),
    "engine": {"config", "errors", "gate"},
    "models": {"config", "demo", "errors"},
    "architectures": {"demo", "errors"},
    "twins": {"architectures"},
    "storage": {"errors"},
    "prompts": {"records", "config", "errors"},
    "parquet": {"records", "storage"},
    "pipelines": {"config", "engine", "gate", "models", "records"},
    "encoding": {"config"},
    "render": {"gate", "pipelines", "encoding", "records", "config", "stages"},
    "metrics": {"records", "parquet", "storage", "errors", "gate", "architectures", "demo"},
    "run": {"config", "models", "parquet", "prompts", "records", "storage", "errors"},
    "counting": {"config", "metrics", "run"},
    "measure": {"metrics", "parquet", "records", "storage"},
    "report": {"config", "metrics", "parquet", "records", "run", "stages"},
    "score": {"demo", "measure", "metrics", "parquet", "prompts", "report", "run", "errors"},
    "progress": {"records"},
    "tasks": {"records", "run"},
    "worker": {
        "render",
        "pipelines",
        "stages",
        "counting",
        "parquet",
        "score",
        "run",
        "prompts",
        "records",
        "config",
    },
    "actors": {"config", "errors", "records", "run", "tasks", "worker"},
    "workflow": {
        "actors",
        "config",
        "counting",
        "errors",
        "metrics",
        "progress",
        "prompts",
        "report",
        "run",
        "score",
    },
    "bench": {
        "actors",
        "architectures",
        "config",
        "demo",
        "engine",
        "encoding",
        "errors",
        "gate",
        "metrics",
        "models",
        "pipelines",
        "prompts",
        "records",
        "run",
        "timing",
        "twins",
    },
    "cli": {"config", "errors"},
}
ONLY_IN = {"ray": {"actors"}}
NEVER_IN = {"pyarrow": {"gate", "config", "errors"}, "torch": {"config", "records", "prompts"}}


def imports(source: str) -> set[str]:
    """Dotted names of everything that a module imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "tgate_batch":
                found |= {f"tgate_batch.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def faults(module: str, source: str) -> list[str]:
    """What a module of this name imports against the table."""
    found = []
    for name in sorted(imports(source)):
        top, _, rest = name.partition(".")
        if top == "tgate_batch":
            other = rest.split(".")[0]
            if other and other != module and other not in ALLOWED[module]:
                found.append(f"{module} imports {other}")
        elif module not in ONLY_IN.get(top, {module}) or module in NEVER_IN.get(top, ()):
            found.append(f"{module} imports {top}")
    return found


def modules() -> list[tuple[str, Path]]:
    files = [file for file in sorted(PACKAGE.rglob("*.py")) if file != PACKAGE / "__init__.py"]
    return [(file.relative_to(PACKAGE).parts[0].removesuffix(".py"), file) for file in files]


@pytest.mark.parametrize(("module", "file"), modules(), ids=lambda value: str(value)[-40:])
def test_module_imports_only_what_the_table_allows(module, file):
    assert faults(module, file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("gate", "from tgate_batch.records import Prompt"),
        ("render", "import ray"),
        ("metrics", "def f():\n    import ray.data"),
        ("gate", "import pyarrow as pa"),
        ("models", "from tgate_batch import actors"),
    ],
)
def test_planted_bad_import_is_found(module, planted):
    assert len(faults(module, planted)) == 1


def test_package_itself_imports_nothing():
    assert imports((PACKAGE / "__init__.py").read_text(encoding="utf-8")) == set()


def test_gate_loads_neither_ray_nor_pyarrow():
    code = (
        "import sys, tgate_batch.gate as g; g.gated; "
        "sys.exit(any(name in sys.modules for name in ('ray', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
