"""A small run for the report's tests: images drawn by hand, measured and scored as any run's.

Among its prompts are some that a careless page would run as a script or tear apart.
"""

import io
import json
from dataclasses import replace

from tgate_batch import config, workflow
from tgate_batch.demo import scenes
from tgate_batch.output import layout, parquet, prompt_store
from tgate_batch.output import run as runs
from tgate_batch.records import Failure, ImageRecord

HOSTILE = {
    "script": "<img src=x onerror=window.hacked=1><script>window.hacked=1</script>",
    "pipes": "a | b || c \\ ` & &amp; {{ 7 * 7 }}",
    "lines": "first line\nsecond line",
    "right-to-left": "قطة حمراء تحت الشمس",
    "long": "word" * 200,
}
PROMPTS = 48
BATCH = 1
THRESHOLDS = {
    "speedup": {"at_least": 1.1},  # passed
    "psnr": {"at_least": 100.0},  # failed
    "prompt_accuracy_change": {"no_worse_than": -0.04},  # undecided
}


def begun(folder, **sections):
    """A run of 48 prompts and three arms, ready to be drawn into."""
    captions = [
        str(scene) for scene in scenes.random_scenes(PROMPTS - len(HOSTILE), 7, held_out=True)
    ]
    lines = [{"id": f"p{number:02}", "text": text} for number, text in enumerate(captions)]
    lines += [{"id": name, "text": text} for name, text in HOSTILE.items()]
    file = folder / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    settings = {
        "models": ["demo"],
        "prompts": {
            "path": str(file),
            "id_column": "id",
            "text_column": "text",
            "shard_size": 20,
        },
        "sampling": {"batch_size": BATCH, "steps": 20},
        "arms": {
            "baseline": {},
            "tgate": {"gate_step": 10},
            "deep": {"deepcache": {"interval": 3}},
        },
        "workers": {"executor": "local"},
        "cost": {"usd_per_cpu_hour": 0.1},
        "thresholds": THRESHOLDS,
        "output": str(folder / "out"),
    }
    run = workflow.prepare(config.parse(settings | sections))
    runs.begin_run(run)
    return run


def draw(run):
    """Writes every shard of every arm."""
    place = 0
    for plan in run.shards:
        prompts = prompt_store.load_shard(run.folder, plan).prompts
        for arm in run.config.arms:
            records = [_record(prompt, place + n, arm) for n, prompt in enumerate(prompts)]
            name = layout.shard_file(layout.images("demo", arm), plan.index)
            identity = layout.file_identity(run.provenance_of("demo", arm), plan.digest)
            macs = "6000000000" if arm == "baseline" else "4000000000"
            about = {"macs_per_image": macs, "macs_per_image_with_attention": macs}
            parquet.write_records(run.folder, name, "demo", arm, records, identity, about)
        place += len(prompts)


def _record(prompt, place, arm):
    """One image: the baseline's, or one that differs from it the more the later it comes."""
    batch = place // BATCH
    seconds = (1.0 if arm == "baseline" else 0.7) + 0.02 * (batch % 5)
    made = ImageRecord(
        prompt.id,
        0,
        prompt.text,
        place,
        "ok",
        width=64,
        height=64,
        batch=f"{arm}-{batch}",
        batch_size=BATCH,
        batch_seconds=seconds,
        denoise_seconds=0.9 * seconds,
        decode_seconds=0.1 * seconds,
        encode_seconds=0.01,
        warm_up=batch < 2,
        worker=f"worker-{batch % 2}",
    )
    if arm == "tgate" and place == 5:
        failure = Failure("ValueError", "ValueError: <b>no</b> image", "a traceback")
        return replace(
            made, status="error", error=failure.reason, error_kind=failure.kind, worker=None
        )
    text = (
        "at the top a large red circle on a white background"
        if prompt.id in HOSTILE
        else prompt.text
    )
    picture = scenes.draw(text, place)
    if arm != "baseline":
        picture = picture.point(lambda level: max(0, level - place // 6))
    if arm == "tgate" and place in (3, 9):  # what the prompt asks for is lost
        picture = scenes.draw("at the top a small blue cross on a black background", place)
    if arm == "deep" and place == 7:
        picture = picture.point(lambda level: 0)  # broken
    stream = io.BytesIO()
    picture.save(stream, "png")
    return replace(made, image=stream.getvalue())


def finished(folder, **sections):
    """The run, drawn, scored and reported."""
    run = begun(folder, **sections)
    draw(run)
    workflow.score(run.config)
    return runs.load_run(run.config.output)
