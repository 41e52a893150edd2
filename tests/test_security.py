"""What SECURITY.md promises: nothing that is read can run code."""

import ast
import json
import shutil
from pathlib import Path

import pytest

from tgate_batch.config import Model
from tgate_batch.errors import UserError
from tgate_batch.metrics.clip import ClipScore, fingerprint
from tgate_batch.metrics.dinov2 import DinoV2
from tgate_batch.metrics.lpips import Lpips
from tgate_batch.models.checkpoint import locate_checkpoint

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "tgate_batch").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])


class Trap:
    """A pickle of it makes a file where it is unpickled."""

    def __init__(self, place: Path):
        self.place = place

    def __reduce__(self):
        return (Path.touch, (self.place,))


def calls(name: str) -> list[tuple[str, dict[str, object]]]:
    """Every call of a function or method of this package and its jobs: place, named arguments."""
    found = []
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(name):
                values = {
                    word.arg: getattr(word.value, "value", None)
                    for word in node.keywords
                    if word.arg
                }
                found.append((f"{file.name}:{node.lineno}", values))
    return found


@pytest.mark.parametrize(
    ("function", "argument", "value"),
    [("read_array", "allow_pickle", False), ("torch.load", "weights_only", True)],
)
def test_every_call_that_could_unpickle_is_told_not_to(function, argument, value):
    found = calls(function)
    assert found
    assert [place for place, given in found if given.get(argument) is not value] == []


@pytest.mark.parametrize(
    "function", ["yaml.load", "yaml.unsafe_load", "pickle.load", "pickle.loads", "np.load"]
)
def test_functions_that_run_what_they_read_are_not_called(function):
    assert calls(function) == []


def test_remote_code_is_trusted_nowhere():
    trusting = [place for place, given in calls("") if given.get("trust_remote_code")]
    assert trusting == []


@pytest.fixture
def folder(tiny, tmp_path) -> Path:
    """A checkpoint that may be spoilt."""
    return Path(shutil.copytree(tiny, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        locate_checkpoint(Model(name="sd15", path=str(folder)))
    assert str(caught.value).isprintable()
    return str(caught.value)


def become_pickle(file: Path, place: Path) -> Path:
    """Puts a pickle that is a trap in place of safetensors."""
    import torch

    file.unlink()
    pickled = file.with_name("diffusion_pytorch_model.bin")
    torch.save(Trap(place), pickled)
    return pickled


def test_pickled_weights_of_one_part_are_refused_by_name_and_not_read(folder, tmp_path):
    pickled = become_pickle(next((folder / "unet").glob("*.safetensors")), tmp_path / "ran")
    said = refusal(folder)
    assert f"{folder / 'unet'} has its weights in {pickled.name}, a pickle" in said
    assert not (tmp_path / "ran").exists()


def test_pickles_beside_safetensors_are_passed_over(folder):
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    assert locate_checkpoint(Model(name="sd15", path=str(folder))) == str(folder)


def test_single_pickle_is_refused_by_name(tmp_path):
    (tmp_path / "model.ckpt").write_bytes(b"pickle")
    assert "has its weights in model.ckpt, a pickle" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"_class_name": ["my_pipeline", "Mine"]}, "a pipeline of its own code"),
        ({"unet": ["my_unet", "Mine"]}, "code of its own for its unet"),
        ({"unet": ["../my_unet", "Mine"]}, "code of its own for its unet"),
        ({"unet": ["diffusers", "UNet2DConditionModel"]}, "code of its own for its unet"),
    ],
)
def test_checkpoint_with_code_of_its_own_is_refused(folder, change, said):
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | change))
    (folder / "unet" / "diffusers.py").write_text("raise SystemExit")
    assert said in refusal(folder)


def test_part_that_is_not_loaded_may_be_anything(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["my_checker", "Mine"]
    (folder / "model_index.json").write_text(json.dumps(index))
    assert locate_checkpoint(Model(name="sd15", path=str(folder))) == str(folder)


@pytest.mark.parametrize("loader", [ClipScore, fingerprint])
def test_pickled_clip_is_refused_by_name(tmp_path, loader):
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"has its weights in pytorch_model\.bin, a pickle"):
        loader(str(tmp_path))


@pytest.mark.parametrize("loader", [ClipScore, fingerprint])
def test_an_index_of_clip_that_names_a_pickle_is_refused(tmp_path, loader):
    """Beside a decoy, so that the folder has safetensors."""
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    (tmp_path / "decoy.safetensors").write_bytes(b"")
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    index = {"metadata": {}, "weight_map": {"logit_scale": "pytorch_model.bin"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"names pytorch_model\.bin, and only safetensors are read"):
        loader(str(tmp_path))


def test_pickled_dinov2_is_refused_by_name(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "dinov2"}')
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UserError, match=r"has its weights in pytorch_model\.bin, a pickle"):
        DinoV2(tmp_path)


def test_torch_file_that_would_run_code_is_refused(tmp_path):
    import torch

    torch.save(Trap(tmp_path / "ran"), tmp_path / "alexnet.pth")
    with pytest.raises(UserError, match="cannot be read"):
        Lpips(tmp_path / "alexnet.pth")
    assert not (tmp_path / "ran").exists()
