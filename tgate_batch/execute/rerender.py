"""Renders stored images again, from the content of an output folder, and compares them.

``rerender_apart`` does it in a fresh process that cannot reach the network: what it needs beside
the folder is the checkpoint on this machine. The process imports nothing from the current folder or
from the output, and no plugin but those that the user names.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, NoReturn

import numpy as np

from tgate_batch.errors import UserError, one_line
from tgate_batch.execute import import_path, plugins
from tgate_batch.execute.worker import limit_threads
from tgate_batch.output import history, layout, parquet, prompt_store
from tgate_batch.output.prompt_store import ShardPlan
from tgate_batch.output.run import Run, device_of, finished, load_run
from tgate_batch.render.codec import decode_image
from tgate_batch.score.measure import ImageKey

_COLUMNS = ["prompt_id", "image_number", "status", "batch", "memory"]


@dataclass(frozen=True)
class RerenderedImage:
    """One stored picture beside a new one.

    ``levels`` is the largest difference of a pixel (of 255): 0 where they are equal, None where
    one of them could not be drawn. ``same_bytes``: the stored file itself is the same. ``exact``:
    whether they have to be equal: the stored one was padded, and drawn with the device, the threads
    and the versions that are here.
    """

    model: str
    arm: str
    prompt_id: str
    image_number: int
    same_bytes: bool
    levels: int | None
    exact: bool = False
    error: str | None = None

    @property
    def alike(self) -> bool:
        """Whether the difference, if there is one, is one of rounding that may be."""
        return self.levels is not None and self.levels <= (0 if self.exact else 1)


# What the process runs: it takes over the import path that it is given.
_CODE = f"""\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {__name__} import main
sys.exit(main(sys.argv[2:]))
"""


def rerender_apart(
    output: str, count: int, trusted: Sequence[str] = ()
) -> Iterator[RerenderedImage]:
    """Draws ``count`` pictures of every arm again, in a process of its own; each as it is drawn.

    ``trusted``: the plugins that it may import. Raises UserError where the process cannot do it.
    """
    untrusted = (os.curdir, output)
    given = [one for one in os.environ.get("PYTHONPATH", "").split(os.pathsep) if one]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(import_path.without_folders(untrusted, given)),
    }
    path = json.dumps(import_path.without_folders(untrusted, sys.path))
    command = [sys.executable, "-P", "-c", _CODE, path, output, str(count), *trusted]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield RerenderedImage(**json.loads(line))
        if process.wait() != 0:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or ["it said nothing"])[-1]
            raise UserError(
                f"output {output} cannot be drawn again: {last.removeprefix('error: ')}"
            )


def rerender(run: Run, count: int) -> Iterator[RerenderedImage]:
    """Draws ``count`` rows of every arm again in this process, model after model."""
    from tgate_batch.models.pipeline_runner import open_runner
    from tgate_batch.render.renderer import Renderer

    limit_threads(run.config)
    done = finished(run)
    for model in run.config.models:
        if not any(done[model.name, arm] for arm in run.config.arms):
            continue
        _check_checkpoint(run, model)
        renderer = Renderer(open_runner(model, run.config), run.config.images, worker="again")
        for arm in run.config.arms:
            shards = [shard for shard in run.shards if shard.index in done[model.name, arm]]
            for shard, keys in _chosen(run, model.name, arm, shards, count).items():
                yield from _compared(run, renderer, model.name, arm, shard, keys)


def _check_checkpoint(run: Run, model: Any) -> None:
    from tgate_batch.models.checkpoint import resolved_dtype
    from tgate_batch.models.fingerprint import fingerprint

    here = fingerprint(model, resolved_dtype(model, device_of(run.config)))
    for arm in run.config.arms:
        if layout.images(model.name, arm) not in run.ledger:
            continue
        drawn_with = run.provenance_of(model.name, arm)["checkpoint"]
        if here != drawn_with:
            raise UserError(
                f"models: {model.name}: the checkpoint here (sha256 {str(here)[:12]}) is not the "
                f"one that drew arm {arm} (sha256 {str(drawn_with)[:12]}); restore it to draw again"
            )


def _chosen(
    run: Run, model: str, arm: str, shards: list[ShardPlan], count: int
) -> dict[ShardPlan, list[ImageKey]]:
    """``count`` rows that are ok, spread over the shards, always the same ones."""
    shards = sorted(shards, key=lambda shard: _draw(f"{model} {arm} {shard.index}"))
    found: dict[ShardPlan, list[ImageKey]] = defaultdict(list)
    rows = [iter(_keys(run, model, arm, shard)) for shard in shards]
    left = count
    while left and shards:
        for shard, keys in list(zip(shards, rows, strict=True)):
            key = next(keys, None)
            if key is None:
                shards.remove(shard)
                rows.remove(keys)
            elif left:
                found[shard].append(key)
                left -= 1
    return found


def _keys(run: Run, model: str, arm: str, shard: ShardPlan) -> list[ImageKey]:
    table = _stored(run, model, arm, shard, ["prompt_id", "image_number", "status"])
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    keys = [(row["prompt_id"], row["image_number"]) for row in rows]
    return sorted(keys, key=lambda key: _draw(f"{model} {arm} {key}"))


def _draw(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _stored(run: Run, model: str, arm: str, shard: ShardPlan, columns: list[str]) -> Any:
    name, identity = run.pictures(model, arm, shard)
    try:
        return parquet.read_table(run.folder, name, columns, identity)
    except parquet.DAMAGE as error:
        reason = " ".join(str(error).split())
        raise UserError(f"output {run.folder}: {name} is damaged: {reason}") from None


def _compared(
    run: Run, renderer: Any, model: str, arm: str, plan: ShardPlan, keys: list[ImageKey]
) -> Iterator[RerenderedImage]:
    """Each row is drawn with the batch-mates it had, since a batch's size moves the last bits."""
    shard = prompt_store.load_shard(run.folder, plan)
    exact = _exact(run, model, arm, plan)
    rows = _stored(run, model, arm, plan, [*_COLUMNS, "image"]).to_pylist()
    stored = {(row["prompt_id"], row["image_number"]): row for row in rows}
    batches = dict.fromkeys(stored[key]["batch"] for key in keys)
    for batch in batches:
        mates = [key for key, row in stored.items() if row["batch"] == batch]
        memory = stored[mates[0]]["memory"]
        drawn = renderer.render_rows(shard, mates, run.config.arms[arm], memory)
        for key in mates:
            if key in keys:
                found = _difference(stored[key]["image"]["bytes"], drawn[key])
                yield RerenderedImage(model, arm, *key, **found, exact=exact)


def _exact(run: Run, model: str, arm: str, plan: ShardPlan) -> bool:
    """Whether this process has to draw the shard's pictures bit for bit."""
    name, _ = run.pictures(model, arm, plan)
    with parquet.open_table(run.folder, name) as file:
        maker = json.loads(parquet.footer(file).get("made_by", "{}"))
    if not maker.get("invariant"):
        return False
    return history.rounds_alike(maker, history.environment(_device(run)))


def _device(run: Run) -> str:
    import torch

    on_gpu = run.config.workers.gpus_each and torch.cuda.is_available()
    return torch.cuda.get_device_name() if on_gpu else history.CPU


def _difference(stored: bytes, drawn: Any) -> dict[str, Any]:
    if drawn.image is None:
        return {"same_bytes": False, "levels": None, "error": drawn.error}
    before, now = (np.asarray(decode_image(content), int) for content in (stored, drawn.image))
    if before.shape != now.shape:
        return {"same_bytes": False, "levels": None, "error": "another size"}
    levels = int(np.abs(before - now).max())
    return {"same_bytes": stored == drawn.image, "levels": levels}


def _without_network() -> None:
    """From here on, Python cannot open a connection."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("this process draws again from the output folder, without the network")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.socket.connect_ex = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse  # type: ignore[assignment]


def main(arguments: list[str]) -> int:
    """``OUTPUT COUNT PLUGIN ...``: prints a JSON line a picture."""
    output, count, *trusted = arguments
    _without_network()
    try:
        run = load_run(output)
        plugins.register(trusted)
        for found in rerender(run, int(count)):
            print(json.dumps(asdict(found)), flush=True)
    except UserError as error:
        print(f"error: {one_line(error, 2000)}", file=sys.stderr)
        return 2
    return 0
