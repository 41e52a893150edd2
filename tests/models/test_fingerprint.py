"""A checkpoint's fingerprint: it follows what loading reads, and nothing else."""

import json
import re
import shutil
from hashlib import sha1, sha256
from pathlib import Path

import diffusers
import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from tgate_batch.config import Model, Sampling
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import load_pipeline
from tgate_batch.models.fingerprint import fingerprint
from tgate_batch.models.resolve import resolve_sampling

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A checkpoint of one's own, to change."""
    return Path(shutil.copytree(tiny, tmp_path / "folder"))


def of(folder: Path, dtype: str = "float32") -> str:
    return fingerprint(Model(name="sd15", path=str(folder)), dtype)


def mine(folder: Path) -> Model:
    return Model(name="sd15", path=str(folder))


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


def test_a_part_with_one_variant_alone_is_read_from_it(tiny, folder):
    """Only the fp16 files were fetched: they are found without a key, and in the fingerprint."""
    plain, name = of(folder), WEIGHTS.replace(".", ".fp16.", 1)
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / name)
    model = Model(name="sd15", path=str(folder))
    pipeline = load_pipeline(model, resolve_sampling(model, Sampling()), "cpu")
    before = load_pipeline(
        Model(name="sd15", path=tiny), resolve_sampling(model, Sampling()), "cpu"
    )
    assert torch.equal(pipeline.unet.conv_in.weight, before.unet.conv_in.weight)
    assert of(folder) != plain
    change(folder / "unet" / name)
    (folder / "unet" / name).unlink()
    with pytest.raises(UserError, match=r"unet has no weights \(no \.safetensors\)\. Fix: "):
        of(folder)


def test_the_variant_of_the_config_is_what_is_read(folder):
    """Both are there and differ; a part that has no such variant is read from its plain files."""
    name = WEIGHTS.replace(".", ".fp16.", 1)
    tensors = load_file(folder / "unet" / WEIGHTS)
    half = {key: value.half() + 1 for key, value in tensors.items()}
    save_file(half, folder / "unet" / name)
    plain, chosen = (Model(name="sd15", path=str(folder), variant=v) for v in (None, "fp16"))
    assert fingerprint(plain, "float32") != fingerprint(chosen, "float32")
    pipeline = load_pipeline(chosen, resolve_sampling(chosen, Sampling()), "cpu")
    assert torch.equal(pipeline.unet.conv_in.weight, half["conv_in.weight"].float())
    with pytest.raises(UserError, match=r"no weights of the variant 'bf16' \(there are: plain\)"):
        fingerprint(Model(name="sd15", path=str(folder), variant="bf16"), "float32")
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / WEIGHTS.replace(".", ".bf16.", 1))
    with pytest.raises(UserError, match=r"variants bf16, fp16 and no plain ones. Fix: give one"):
        fingerprint(plain, "float32")


def in_two_shards(folder: Path, variant: str = "") -> Path:
    """Writes the denoiser's weights as two shards with an index, as save_pretrained does."""
    pipeline_part = diffusers.UNet2DConditionModel.from_pretrained(folder / "unet")
    (folder / "unet" / WEIGHTS).unlink()
    pipeline_part.save_pretrained(folder / "unet", max_shard_size="200KB", variant=variant or None)
    (index,) = folder.glob("unet/*.index*.json")
    return index


@pytest.mark.parametrize("variant", ["", "fp16"])
def test_sharded_weights_of_a_variant_are_read_whole(tiny, folder, variant):
    in_two_shards(folder, variant)
    model = Model(name="sd15", path=str(folder))
    pipeline = load_pipeline(model, resolve_sampling(model, Sampling()), "cpu")
    before = load_pipeline(
        Model(name="sd15", path=tiny), resolve_sampling(model, Sampling()), "cpu"
    ).unet
    for name, value in before.state_dict().items():
        assert torch.equal(pipeline.unet.state_dict()[name], value)
    change(sorted(folder.glob("unet/*-of-*.safetensors"))[-1])
    assert of(folder) != fingerprint(Model(name="sd15", path=tiny), "float32")


def renamed_in(index: Path, name: str) -> None:
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"]))
    content["weight_map"][first] = name
    index.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("weights.bin", "only safetensors are read"),
        ("../../elsewhere/weights.safetensors", "that is not a file name"),
        ("gone.safetensors", "which its index names. Fix: copy the whole checkpoint"),
    ],
)
def test_an_index_that_names_other_files_is_refused_before_anything_is_loaded(folder, name, said):
    """A pickle beside a decoy: diffusers would load what the index names."""
    index = in_two_shards(folder)
    torch.save({"conv_in.bias": torch.ones(32)}, folder / "unet" / "weights.bin")
    renamed_in(index, name)
    for tried in (
        of,
        lambda folder: load_pipeline(
            mine(folder), resolve_sampling(mine(folder), Sampling()), "cpu"
        ),
    ):
        with pytest.raises(UserError, match=re.escape(said)) as told:
            tried(folder)
        assert name in str(told.value)


def test_an_index_that_leaves_a_file_out_is_refused(folder):
    """transformers would make the weights up that no named file holds."""
    index = in_two_shards(folder)
    content = json.loads(index.read_text())
    kept = sorted(set(content["weight_map"].values()))[0]
    content["weight_map"] = {k: v for k, v in content["weight_map"].items() if v == kept}
    index.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"does not name .*-of-.*, which is in"):
        of(folder)


@pytest.mark.parametrize("file", [f"unet/{WEIGHTS}", "tokenizer/tokenizer.json"])
def test_a_link_out_of_the_folder_is_refused_and_one_within_it_is_read(folder, tmp_path, file):
    before = of(folder)
    inside = (folder / file).rename(folder / "moved")
    (folder / file).symlink_to(inside)
    assert of(folder) == before
    inside.rename(tmp_path / "moved")
    (folder / file).unlink()
    (folder / file).symlink_to(tmp_path / "moved")
    with pytest.raises(UserError, match=r"is a link to .*, outside the checkpoint's folder"):
        of(folder)


def test_files_that_lead_a_loader_to_another_model_are_refused(folder, tmp_path):
    (folder / "text_encoder" / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="would make the loader read another model"):
        of(folder)
    (folder / "text_encoder" / "adapter_config.json").unlink()
    (tmp_path / "vocabulary.json").write_text("{}")
    names = json.loads((folder / "tokenizer" / "tokenizer_config.json").read_text())
    names["vocab_file"] = str(tmp_path / "vocabulary.json")
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(names))
    with pytest.raises(UserError, match=r"vocab_file names .*, outside its folder"):
        of(folder)


def test_a_name_that_only_looks_like_the_hubs_is_hashed_by_its_content(folder):
    """A folder of one's own has no hub's cache in it, whatever its files are called."""
    blob = folder / "blobs" / ("0" * 64)
    blob.parent.mkdir()
    (folder / "unet" / WEIGHTS).rename(blob)
    (folder / "unet" / WEIGHTS).symlink_to(blob)
    before = of(folder)
    change(blob)
    assert of(folder) != before


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
