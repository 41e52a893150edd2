"""A checkpoint's fingerprint: it follows what loading reads, and nothing else."""

import shutil
from hashlib import sha1, sha256
from pathlib import Path

import huggingface_hub
import pytest

from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.fingerprint import fingerprint

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A checkpoint of one's own, to change."""
    return Path(shutil.copytree(tiny, tmp_path / "folder"))


def of(folder: Path, dtype: str = "float32") -> str:
    return fingerprint(Model(name="sd15", path=str(folder)), dtype)


def change(file: Path) -> None:
    """Flips the last byte of a file."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "file",
    [
        f"unet/{WEIGHTS}",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer.json",
    ],
)
def test_another_byte_in_a_file_that_is_read_changes_it(folder, file):
    before = of(folder)
    change(folder / file)
    assert of(folder) != before


def test_a_renamed_and_a_copied_folder_keep_it(folder, tmp_path):
    before = of(folder)
    assert of(shutil.copytree(folder, tmp_path / "copy")) == before
    assert of(folder.rename(tmp_path / "other")) == before


@pytest.mark.parametrize(
    "file",
    [
        "README.md",
        "unet/README.md",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin.index.json",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "safety_checker/model.safetensors",  # the row leaves the checker out
        "notes/config.json",
    ],
)
def test_a_file_that_is_not_read_does_not_change_it(folder, file):
    before = of(folder)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("more")
    assert of(folder) == before


def test_plain_weights_are_read_of_a_folder_whatever_the_dtype(folder):
    shutil.copy(folder / "unet" / WEIGHTS, folder / "unet" / WEIGHTS.replace(".", ".fp16.", 1))
    before = of(folder, "float16")
    change(folder / "unet" / WEIGHTS)
    assert of(folder, "float16") != before


def test_folder_that_is_damaged_or_missing_is_told(folder, tmp_path):
    (folder / "model_index.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        of(folder)
    with pytest.raises(UserError, match="not a diffusers folder"):
        of(tmp_path / "none")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """``hub(folder, hub_id)`` puts a folder into the local cache as a download does."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def put(folder: Path, hub_id: str) -> Path:
        home = cache / f"models--{hub_id.replace('/', '--')}"
        snapshot = home / "snapshots" / "0123abcd"
        for name in ("refs", "blobs", "snapshots"):
            (home / name).mkdir(parents=True)
        (home / "refs" / "main").write_text("0123abcd")
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            name = sha256 if file.suffix == ".safetensors" else sha1  # as git and LFS name them
            blob = home / "blobs" / name(file.read_bytes()).hexdigest()
            shutil.copy(file, blob)
            link = snapshot / file.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(blob)
        return snapshot

    return put


def test_the_hubs_cache_gives_the_fingerprint_of_the_folder_it_was_made_of(folder, hub):
    model = Model(name="sd15", path="some/finetune")
    assert fingerprint(model, "float32") is None  # not downloaded yet
    hub(folder, "some/finetune")
    assert fingerprint(model, "float32") == of(folder)


def test_a_blob_named_by_its_sha256_is_not_read(folder, hub):
    snapshot = hub(folder, "some/finetune")
    before = fingerprint(Model(name="sd15", path="some/finetune"), "float32")
    change((snapshot / "unet" / WEIGHTS).resolve())
    assert fingerprint(Model(name="sd15", path="some/finetune"), "float32") == before


@pytest.mark.parametrize("missing", [f"unet/{WEIGHTS}", "vae", "text_encoder/config.json"])
def test_an_unfinished_download_has_none(folder, hub, missing):
    snapshot = hub(folder, "some/finetune")
    if (snapshot / missing).is_dir():
        shutil.rmtree(snapshot / missing)
    else:
        (snapshot / missing).unlink()
    assert fingerprint(Model(name="sd15", path="some/finetune"), "float32") is None


def test_weights_in_two_files_are_whole_only_together(folder, hub):
    whole = folder / "unet" / WEIGHTS
    for number in (1, 2):
        shutil.copy(whole, folder / "unet" / WEIGHTS.replace(".", f"-0000{number}-of-00002.", 1))
    whole.unlink()
    snapshot = hub(folder, "some/finetune")
    model = Model(name="sd15", path="some/finetune")
    assert fingerprint(model, "float32") == of(folder)
    (snapshot / "unet" / WEIGHTS.replace(".", "-00002-of-00002.", 1)).unlink()
    assert fingerprint(model, "float32") is None


def test_half_precision_files_count_where_they_are_read(folder, hub):
    """The documented checkpoint on a GPU reads its fp16 files, and on a CPU the plain ones."""
    for part, name in (("unet", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
        shutil.copy(folder / part / name, folder / part / name.replace(".", ".fp16.", 1))
    snapshot = hub(folder, catalogue.entry("sd15").checkpoint)
    model = Model(name="sd15")
    half, full = fingerprint(model, "float16"), fingerprint(model, "float32")
    assert full == of(folder)
    assert half != full
    (snapshot / "unet" / WEIGHTS).unlink()
    assert fingerprint(model, "float16") == half


def test_the_denoiser_that_replaces_the_checkpoints_counts(hub, tmp_path):
    row, model = catalogue.entry("lcm_sdxl"), Model(name="lcm_sdxl")
    whole = catalogue.save_tiny("lcm_sdxl", tmp_path / "whole")
    hub(whole, row.checkpoint)
    assert fingerprint(model, "float32") is None  # the other denoiser is not here yet
    snapshot = hub(whole / "unet", row.unet)
    found = fingerprint(model, "float32")
    assert found == fingerprint(Model(name="lcm_sdxl", path=str(whole)), "float32")
    (snapshot / "config.json").unlink()
    (snapshot / "config.json").write_text("{}")
    assert fingerprint(model, "float32") != found
