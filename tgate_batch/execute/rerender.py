"""Renders stored images again, from the content of an output folder, and compares them.

``rerender_apart`` does so in a fresh process without network access: besides the folder it needs
only the checkpoint on this machine. The process imports nothing from the current folder or from
the output, and only the plugins that the user names.
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

from tgate_batch import console
from tgate_batch.config import Model
from tgate_batch.errors import UserError, message_of, one_line
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
    """The comparison of a stored image with a new one.

    ``levels`` is the largest difference of a pixel (of 255): 0 if they are equal, None if one of
    them could not be rendered. ``same_bytes``: the encoded bytes are equal. ``exact``: the pixels
    must be equal, because the stored image was padded, and rendered with the device, threads and
    versions of this process.
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
        """True if the difference is within the allowed rounding error."""
        return self.levels is not None and self.levels <= (0 if self.exact else 1)

    def __str__(self) -> str:
        if self.levels is None:
            verdict = f"cannot be rendered: {self.error}"
        elif self.same_bytes:
            verdict = "equal, bit for bit"
        elif not self.alike:
            verdict = f"differs by up to {self.levels} of 255 levels"
            verdict += ", but must be equal bit for bit on this machine" if self.exact else ""
        elif self.levels:
            verdict = f"alike within {self.levels} of 255 levels"
        else:
            verdict = "equal in every pixel, but encoded differently"
        return f"{self.model} {self.arm} {self.prompt_id}/{self.image_number}: {verdict}"


# The code of the fresh process, which takes over the import path that it is given.
_CODE = f"""\
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from {__name__} import main
sys.exit(main(sys.argv[2:]))
"""


def log_rerendered(output: str, count: int, trusted: Sequence[str]) -> bool:
    """Renders ``count`` images of every arm again and logs how they compare.

    ``trusted``: the plugins that may be imported. Returns True if there are images and all are
    alike.
    """
    for name in load_run(output).config.plugins:
        if name not in trusted:
            console.warning(
                f"the run uses the plugin {name}, which is code and is not imported. Fix: if you "
                f"trust it, add --plugin {name}"
            )
    what = f"{count:,} images" if count != 1 else "1 image"
    console.info(f"rendering {what} of every arm again, in another process ...", event="phase")
    images = []
    for image in rerender_apart(output, count, trusted):
        images.append(image)
        console.info(str(image))
    alike = sum(image.alike for image in images)
    exact = all(image.exact for image in images)
    how = "bit for bit" if exact else "at most 1 level of 255 apart"
    console.info(f"{len(images)} images rendered again, {alike} alike ({how})")
    return 0 < len(images) == alike


def rerender_apart(
    output: str, count: int, trusted: Sequence[str] = ()
) -> Iterator[RerenderedImage]:
    """Renders ``count`` images of every arm again in a fresh process; yields each as it is done.

    ``trusted``: the plugins that may be imported. Raises UserError if the process fails.
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
            last = (errors.read().strip().splitlines() or ["no message"])[-1]
            raise UserError(
                f"output {output} cannot be rendered again: {last.removeprefix('error: ')}"
            )


def rerender(run: Run, count: int) -> Iterator[RerenderedImage]:
    """Renders ``count`` rows of every arm again in this process, model by model."""
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
            for shard, keys in _choose(run, model.name, arm, shards, count).items():
                yield from _compare(run, renderer, model.name, arm, shard, keys)


def _check_checkpoint(run: Run, model: Model) -> None:
    """Raises UserError if an arm was rendered with other files of the model."""
    from tgate_batch.models.checkpoint import resolved_dtype
    from tgate_batch.models.fingerprint import fingerprint

    here = fingerprint(model, resolved_dtype(model, device_of(run.config)))
    for arm in run.config.arms:
        if layout.images(model.name, arm) not in run.ledger:
            continue
        expected = run.provenance_of(model.name, arm)["checkpoint"]
        if here != expected:
            raise UserError(
                f"models: {model.name}: the checkpoint here (sha256 {str(here)[:12]}) differs from "
                f"the one that arm {arm} was rendered with (sha256 {str(expected)[:12]}). Fix: "
                "restore that checkpoint"
            )


def _choose(
    run: Run, model: str, arm: str, shards: list[ShardPlan], count: int
) -> dict[ShardPlan, list[ImageKey]]:
    """Returns ``count`` successful rows, spread over the shards; always the same ones."""
    shards = sorted(shards, key=lambda shard: _hash(f"{model} {arm} {shard.index}"))
    chosen: dict[ShardPlan, list[ImageKey]] = defaultdict(list)
    rows = [iter(_keys(run, model, arm, shard)) for shard in shards]
    left = count
    while left and shards:
        for shard, keys in list(zip(shards, rows, strict=True)):
            key = next(keys, None)
            if key is None:
                shards.remove(shard)
                rows.remove(keys)
            elif left:
                chosen[shard].append(key)
                left -= 1
    return chosen


def _keys(run: Run, model: str, arm: str, shard: ShardPlan) -> list[ImageKey]:
    table = _read(run, model, arm, shard, ["prompt_id", "image_number", "status"])
    rows = [row for row in table.to_pylist() if row["status"] == "ok"]
    keys = [(row["prompt_id"], row["image_number"]) for row in rows]
    return sorted(keys, key=lambda key: _hash(f"{model} {arm} {key}"))


def _hash(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=8).digest()


def _read(run: Run, model: str, arm: str, shard: ShardPlan, columns: list[str]) -> Any:
    name, identity = run.pictures(model, arm, shard)
    try:
        return parquet.read_table(run.folder, name, columns, identity)
    except parquet.DAMAGE as error:
        raise UserError(f"output {run.folder}: {name} is damaged: {message_of(error)}") from None


def _compare(
    run: Run, renderer: Any, model: str, arm: str, plan: ShardPlan, keys: list[ImageKey]
) -> Iterator[RerenderedImage]:
    """Renders each row in its original batch, because the batch size changes the last bits."""
    shard = prompt_store.load_shard(run.folder, plan)
    exact = _is_exact(run, model, arm, plan)
    rows = _read(run, model, arm, plan, [*_COLUMNS, "image"]).to_pylist()
    stored = {(row["prompt_id"], row["image_number"]): row for row in rows}
    for batch in dict.fromkeys(stored[key]["batch"] for key in keys):
        batch_keys = [key for key, row in stored.items() if row["batch"] == batch]
        memory = stored[batch_keys[0]]["memory"]
        rendered = renderer.render_rows(shard, batch_keys, run.config.arms[arm], memory)
        for key in batch_keys:
            if key in keys:
                difference = _difference(stored[key]["image"]["bytes"], rendered[key])
                yield RerenderedImage(model, arm, *key, **difference, exact=exact)


def _is_exact(run: Run, model: str, arm: str, plan: ShardPlan) -> bool:
    """True if this process must render the shard's images bit for bit."""
    name, _ = run.pictures(model, arm, plan)
    with parquet.open_table(run.folder, name) as file:
        maker = json.loads(parquet.footer(file).get("made_by", "{}"))
    if not maker.get("invariant"):
        return False
    import torch

    on_gpu = run.config.workers.gpus_each and torch.cuda.is_available()
    device = torch.cuda.get_device_name() if on_gpu else history.CPU
    return history.rounds_alike(maker, history.environment(device))


def _difference(stored: bytes, rendered: Any) -> dict[str, Any]:
    if rendered.image is None:
        return {"same_bytes": False, "levels": None, "error": rendered.error}
    before, now = (np.asarray(decode_image(image), int) for image in (stored, rendered.image))
    if before.shape != now.shape:
        return {"same_bytes": False, "levels": None, "error": "another size"}
    levels = int(np.abs(before - now).max())
    return {"same_bytes": stored == rendered.image, "levels": levels}


def _disable_network() -> None:
    """Makes every later attempt of Python to open a connection fail."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise OSError("this process renders from the output folder alone, without the network")

    socket.socket.connect = refuse  # type: ignore[method-assign]
    socket.socket.connect_ex = refuse  # type: ignore[method-assign]
    socket.getaddrinfo = refuse  # type: ignore[assignment]


def main(arguments: list[str]) -> int:
    """Takes ``OUTPUT COUNT PLUGIN ...``; prints a JSON line for each image."""
    output, count, *trusted = arguments
    _disable_network()
    try:
        run = load_run(output)
        plugins.register(trusted)
        for image in rerender(run, int(count)):
            print(json.dumps(asdict(image)), flush=True)
    except UserError as error:
        print(f"error: {one_line(error, 2000)}", file=sys.stderr)
        return 2
    return 0
