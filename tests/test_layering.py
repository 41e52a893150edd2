"""The order of the data is the order of the modules: each imports only what stands above it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tgate_batch"

ORDER = """
errors
console
storage.credentials storage.outages storage.remote storage.folder storage.images storage.archives
storage
records
gate.table gate.plan gate.supported_denoisers gate.layers gate.denoiser_hook gate.scheduler_hooks
gate.step_tracker
gate.deepcache gate.pipeline gate.branches gate.memory gate.loaders gate
config.sections config.sampling config.bundled config.validation config.loading config.docs config
metrics.weights metrics.part_files metrics.base metrics.broken_images metrics.features
metrics.dinov2
metrics.cmmd metrics.frechet metrics.sampling metrics.jackknife metrics.moments metrics.kid
metrics.precision_recall
metrics.pairs metrics.psnr metrics.ssim metrics.lpips metrics.clip
metrics.throughput metrics.cost metrics
plan_search.normal plan_search.evidence plan_search.looks plan_search.chain plan_search.belief
plan_search.search plan_search.expectation plan_search.candidates plan_search
demo demo.scenes demo.accuracy
models.architecture models.family models.tiny models.sd models.sdxl models.kolors
models.pixart models.sana models.svd models.wan
models.generic.tiny models.generic.rows models.generic.classes models.generic.family
models.catalogue models.hub models.single_file models.resolve models.schedulers
models.loras models.description models.files models.checkpoint models.fingerprint models.engine
models.guidance models.pipeline_runner
models.generic.calls models.generic.encoding models.generic.runner models.generic
models.macs.call models.macs.hollow models.macs.arm models.macs.published
models.macs models
prompts.source prompts.json_stream prompts.json_sets prompts.webui prompts.formats prompts.globbing
prompts.row_images prompts.settings prompts.columns prompts.reader prompts.batching prompts
render.timing render.codec render.batch_size render.renderer render
output.layout output.seal output.shapes output.provenance output.shutdown output.history output.lock
output.parquet output.prompt_store output.prompt_plan output.card output.compatibility output.stale
output.run output.config_warnings output.error_rows
output.status
output.export output
score.registry score.image_parts score.image_sources score.reference score.reference_check
score.reference_file score.measure
score.partial_sums
score.plot_data
score.row_sums score.aggregate score.extractor_facts score.conclusion score.figures
score.measurement_plan score.scoring score.plan_losses score
report.columns report.thresholds report.verdict report.plan_size report.result_table report.summary
report.frontier report.sections report.gallery report.plots.svg report.plots.base report.plots.time
report.plots.quality
report.plots report.page report.terminal report
execute.import_path execute.plugins execute.task execute.pool execute.executor
execute.lazy_executor execute.worker
execute.local execute.orphan_reaper execute.cluster execute.ray
execute.progress execute.reference execute.macs_counter execute.rendering execute.scoring
execute.rerender execute.estimate execute.run_summary execute.plan_setup execute.plan_finder
execute.verify.findings execute.verify.tables execute.verify.results execute.verify.provenance
execute.verify.prompts execute.verify.checker execute.verify.repair execute.verify
execute.preflight execute
workflow
cli.job cli.config_options cli.render cli.score cli.report cli.status cli.verify cli.export
cli.reference cli.find_plan cli.plan_size cli.macs cli.image cli.init cli.bench cli.main cli
__main__
demo.training.muon demo.training.networks demo.training.evaluate demo.training.train
demo.training
"""
READERS = {  # what opens bytes that may be a stranger's, and the one module that may
    "Image.open": "storage.images",
    "load_image": "storage.images",
    "np.load": "storage.archives",
    "read_array": "storage.archives",
}
RAY = ("execute.cluster", "execute.ray")  # they alone import ray
LAYERS = ORDER.split()
FLOOR = {module: floor for floor, module in enumerate(LAYERS)}


def name_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(source: str) -> set[str]:
    """Dotted names of everything that a module imports, at any depth and under TYPE_CHECKING."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(name: str) -> str | None:
    """The module of this package that an imported name lies in, without the package's name."""
    top, _, rest = name.partition(".")
    if top != "tgate_batch":
        return None
    while rest and rest not in FLOOR:
        rest = rest.rpartition(".")[0]
    return rest or None


def faults(module: str, source: str) -> list[str]:
    """What a module imports that does not stand above it, and Ray outside its two files."""
    found = []
    for name in sorted(imports(source)):
        other = ours(name)
        if other is not None and FLOOR[other] >= FLOOR[module]:
            found.append(f"{module} imports {other}")
        if name.split(".")[0] == "ray" and module not in RAY:
            found.append(f"{module} imports ray")
        if other is not None and module.startswith("gate") and not other.startswith("gate"):
            found.append(f"{module} imports {other}, and the gate is a library of its own")
    return found


def opens(source: str) -> set[str]:
    """Those of READERS that a module uses, under whatever name it imports them."""
    called = {ast.unparse(n.func) for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Call)}
    brought = {name.replace("numpy.", "np.") for name in imports(source)}
    return {
        reader
        for reader in READERS
        if any(f".{name}".endswith(f".{reader}") for name in called | brought)
    }


MODULES = {name_of(file): file for file in sorted(PACKAGE.rglob("*.py"))}
MODULES.pop("")


def test_every_module_has_its_place():
    assert sorted(MODULES) == sorted(LAYERS)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_module_imports_only_what_stands_above_it(module):
    assert faults(module, MODULES[module].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "planted"),
    [
        ("gate.plan", "from tgate_batch.records import Prompt"),
        ("gate.layers", "if TYPE_CHECKING:\n    from tgate_batch.gate.pipeline import gated"),
        ("render.renderer", "import ray"),
        ("metrics.kid", "def f():\n    import ray.data"),
        ("score.measure", "from tgate_batch.report import page"),
        ("models.sd", "from tgate_batch import workflow"),
    ],
)
def test_planted_bad_import_is_found(module, planted):
    assert len(faults(module, planted)) == 1


@pytest.mark.parametrize("module", sorted(MODULES))
def test_images_and_archives_are_opened_by_one_module_each(module):
    used = opens(MODULES[module].read_text(encoding="utf-8"))
    assert {reader for reader in used if READERS[reader] != module} == set()


@pytest.mark.parametrize(
    ("planted", "reader"),
    [
        ("from PIL import Image\nImage.open(file)", "Image.open"),
        ("import PIL.Image\nPIL.Image.open(file)", "Image.open"),
        ("from PIL.Image import open", "Image.open"),
        ("from numpy import load", "np.load"),
        ("from diffusers.utils import load_image", "load_image"),
    ],
)
def test_planted_opening_is_found(planted, reader):
    assert opens(planted) == {reader}


def test_at_most_18_modules_and_packages_stand_at_the_top():
    top = {path.name for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert len(top - {"__pycache__", "__init__.py", "__main__.py"}) <= 18


def test_the_package_runs_without_its_benchmarks():
    """The command for them alone knows where they are, and finds them when it runs."""
    importing = {
        module
        for module, file in MODULES.items()
        if any(name.split(".")[0] == "benchmarks" for name in imports(file.read_text("utf-8")))
    }
    assert importing <= {module for module in MODULES if module.startswith("demo.training")}


def test_gate_loads_neither_ray_nor_pyarrow():
    code = (
        "import sys, tgate_batch.gate as g; g.gated; "
        "sys.exit(any(name in sys.modules for name in ('ray', 'pyarrow')))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


VAGUE = {"found", "said", "held", "told"}  # say what a value is instead


def vague_names(source: str) -> set[str]:
    """Those of VAGUE that a module uses as the name of a value, a function or a class."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
    return names & VAGUE


@pytest.mark.parametrize("module", sorted(MODULES))
def test_names_say_what_they_are(module):
    assert vague_names(MODULES[module].read_text(encoding="utf-8")) == set()


@pytest.mark.parametrize(
    "planted", ["found = 1", "def f(said): pass", "def told(): pass", "for held in (): pass"]
)
def test_planted_vague_name_is_found(planted):
    assert len(vague_names(planted)) == 1
