"""What people get wrong in a config: one line each, with the key and what to do, at once."""

import json
import time
from pathlib import Path

import pytest
import yaml

from tgate_batch.cli.main import run
from tgate_batch.errors import UserError

# what is changed in the config: the words that the one line has to have
MISTAKES = {
    # keys
    "a key of another name": ({"sampling.step": 5}, ["sampling.step", "steps"]),
    "a section of another name": ({"sample": {}}, ["'sample'", "sampling"]),
    "gates": ({"gates": {}}, ["gates", "thresholds"]),
    "no models": ({"models": None}, ["models"]),
    "an empty list of models": ({"models": []}, ["models", "at least 1"]),
    "no arms": ({"arms": {}}, ["arms", "at least 1"]),
    "no prompts": ({"prompts": ...}, ["prompts", "missing"]),
    "no output": ({"output": ...}, ["output", "missing"]),
    "prompts as text": ({"prompts": "captions.csv"}, ["prompts"]),
    # models
    "a model of another name": ({"models": ["sdx"]}, ["sdx", "did you mean", "sdxl"]),
    "a model twice": ({"models": ["demo", "demo"]}, ["demo", "twice"]),
    "a folder that is none": (
        {"models.0.path": "/no/such"},
        ["/no/such", "no model_index.json"],
    ),
    "another model without its path": ({"models": ["mine"]}, ["'mine'", "needs its path"]),
    "a path that is a pickle": (
        {"models.0.path": "model.ckpt"},
        ["model.ckpt", "pickle", ".safetensors"],
    ),
    "a single file that is not there": (
        {"models.0": {"name": "mine", "path": "mine.safetensors"}},
        ["mine.safetensors", "not there"],
    ),
    "a single file that is none": (
        {"models.0": {"name": "mine", "path": "empty.safetensors"}},
        ["empty.safetensors", "no safetensors file"],
    ),
    "a single file of a U-Net alone": (
        {"models.0": {"name": "mine", "path": "unet.safetensors"}},
        ["unet.safetensors", "no text encoder", "models.unet"],
    ),
    "a single file without configurations": (
        {"models.0": {"name": "mine", "path": "sdxl.safetensors"}},
        ["config of sdxl.safetensors", "stabilityai/stable-diffusion-xl-base-1.0", "OFFLINE"],
    ),
    "a pipeline that is not served": (
        {"models.0": {"name": "mine", "path": "inpaint"}},
        ["mine", "StableDiffusionInpaintPipeline"],
    ),
    "a gate of a pipeline that only follows intervals of guidance": (
        {"models.0": {"name": "mine", "path": "flux"}},
        ["arms.tgate with mine", "FluxPipeline", "guidance_until"],
    ),
    "a folder of another class": (
        {"models.0": {"name": "sdxl", "path": "flux"}},
        ["sdxl", "FluxPipeline", "StableDiffusionXLPipeline", "name of its own"],
    ),
    "a hub id that is not here": (
        {"models.0": {"name": "mine", "path": "some/finetune", "revision": "v2"}},
        ["some/finetune at v2", "OFFLINE"],
    ),
    "a revision of a model of the catalogue": ({"models.0.revision": "v2"}, ["revision", "hub id"]),
    "a LoRA that is not there": (
        {"models.0.loras": [{"path": "lora.safetensors"}]},
        ["demo: loras.0", "lora.safetensors", "does not exist"],
    ),
    "a LoRA that is none": (
        {"models.0.loras": [{"path": "unet.safetensors"}]},
        ["demo: loras.0", "unet.safetensors", "no LoRA"],
    ),
    "a LoRA with another key": (
        {"models.0.loras": [{"path": "x", "weight": 0.5}]},
        ["models.0.loras.0.weight", "weight_name"],
    ),
    "a VAE that is not there": ({"models.0.vae": "./vae"}, ["demo: vae", "./vae", "config.json"]),
    "a model's scheduler of another name": (
        {"models.0.scheduler": "EulerDiscretScheduler"},
        ["demo: scheduler", "did you mean EulerDiscreteScheduler"],
    ),
    "an arm with the checkpoint's scheduler": (
        {"arms.tgate.scheduler": "own"},
        ["arms.tgate.scheduler", "leave it out"],
    ),
    "a scheduler without a class": (
        {"models.0.scheduler": {"timestep_spacing": "trailing"}},
        ["scheduler", "class: EulerDiscreteScheduler"],
    ),
    "an argument that the scheduler does not have": (
        {"sampling.scheduler": {"class": "DDIMScheduler", "timestep_spaceing": "trailing"}},
        ["sampling.scheduler", "DDIMScheduler", "did you mean timestep_spacing"],
    ),
    "timesteps of one's own": (
        {"sampling.scheduler": {"class": "EulerDiscreteScheduler", "timesteps": [999, 500]}},
        ["sampling.scheduler", "no argument 'timesteps'", "at each call", "timestep_spacing"],
    ),
    "an arm's scheduler with arguments": (
        {"arms.tgate.scheduler": {"class": "EulerDiscreteScheduler", "use_karras_sigmas": True}},
        ["arms.tgate.scheduler", "scheduler: EulerDiscreteScheduler", "sampling.scheduler"],
    ),
    "one seed for the noise of all pictures": (
        {"sampling.scheduler": {"class": "DPMSolverSDEScheduler", "noise_sampler_seed": 7}},
        ["sampling.scheduler", "noise_sampler_seed", "leave it out"],
    ),
    "an unknown dtype": ({"models.0.dtype": "fp16"}, ["dtype", "float16"]),
    "a name that is a path": ({"models.0.name": "../demo"}, ["cannot name a folder"]),
    # prompts
    "a prompts file that is not there": ({"prompts.path": "no.csv"}, ["no.csv", "does not exist"]),
    "a prompts file of another kind": ({"prompts.path": "p.docx"}, ["p.docx", ".csv"]),
    "a column that is not there": ({"prompts.text_column": "words"}, ["words", "caption"]),
    "an id column that is not there": ({"prompts.id_column": "key"}, ["key", "caption"]),
    "a limit of 0": ({"prompts.limit": 0}, ["prompts.limit", "1"]),
    "an offset beyond the end": ({"prompts.offset": 10**6}, ["no prompts", "1000000"]),
    "a negative offset": ({"prompts.offset": -1}, ["prompts.offset"]),
    "a shard size of 0": ({"prompts.shard_size": 0}, ["prompts.shard_size"]),
    # sampling
    "steps as a word": ({"sampling.steps": "many"}, ["sampling.steps", "many"]),
    "0 steps": ({"sampling.steps": 0}, ["sampling.steps", "1"]),
    "an odd height": ({"sampling.height": 500}, ["sampling.height", "8"]),
    "a negative guidance": ({"sampling.guidance_scale": -1}, ["guidance_scale"]),
    "guidance that is no number": ({"sampling.guidance_scale": ".nan"}, ["guidance_scale"]),
    "an unknown scheduler": (
        {"sampling.scheduler": "EulerDiscretScheduler"},
        ["sampling.scheduler", "did you mean EulerDiscreteScheduler"],
    ),
    "a batch of 0": ({"sampling.batch_size": 0}, ["sampling.batch_size"]),
    "no picture a prompt": ({"sampling.images_per_prompt": 0}, ["images_per_prompt"]),
    # arms
    "a gate beyond the steps": ({"arms.tgate.gate_step": 26}, ["arms.tgate", "26", "25"]),
    "a gate at step 0": ({"arms.tgate.gate_step": 0}, ["gate_step"]),
    "a plan without a gate": ({"arms.tgate": {"sp_interval": 3}}, ["arms.tgate", "gate_step"]),
    "an interval of 0": ({"arms.tgate.sp_interval": 0}, ["sp_interval"]),
    "a negative warm-up": ({"arms.tgate.warm_up": -1}, ["warm_up"]),
    "DeepCache of interval 0": ({"arms.tgate.deepcache": {"interval": 0}}, ["interval"]),
    "DeepCache with another key": ({"arms.tgate.deepcache": {"every": 3}}, ["deepcache", "every"]),
    "an arm whose name is a path": ({"arms": {"a/b": {}}}, ["a/b", "cannot name a folder"]),
    # workers and engine
    "an unknown executor": ({"workers.executor": "slurm"}, ["workers.executor", "ray, local"]),
    "no worker": ({"workers.max": 0}, ["workers.max"]),
    "min above max": ({"workers": {"min": 4, "max": 2}}, ["workers", "4", "2"]),
    "negative GPUs": ({"workers.gpus_each": -1}, ["workers.gpus_each"]),
    "no CPU": ({"workers.cpus_each": 0}, ["workers.cpus_each"]),
    "no patience": ({"workers.hang_after": 0}, ["workers.hang_after"]),
    "an unknown attention": ({"engine.attention": "xformers"}, ["engine.attention", "flash"]),
    "a share of errors above 1": ({"max_errors": 1.5}, ["max_errors"]),
    # pictures
    "an unknown format": ({"images.format": "gif"}, ["images.format", "webp"]),
    "quality above 100": ({"images.quality": 101}, ["images.quality"]),
    # scores
    "an unknown extractor": ({"score.extractor": "resnet"}, ["resnet", "inception"]),
    "an extractor twice": (
        {"score.extractor": ["inception", "inception"], "score.reference": None},
        ["score.extractor", "twice"],
    ),
    "a reference that is not there": (
        {"score.reference": "no.npz"},
        ["score.reference", "no.npz", "tgate-batch reference"],
    ),
    "weights of an unknown metric": ({"score.weights": {"clop": "x"}}, ["clop", "clip"]),
    "weights that are not there": ({"score.weights": {"lpips": "no.pth"}}, ["no.pth"]),
    "a column of categories that is not there": ({"score.by": "length"}, ["length"]),
    # thresholds
    "a threshold on nothing": ({"thresholds": {"speed": {"min": 1}}}, ["speed", "speedup"]),
    "a threshold without a test": ({"thresholds": {"speedup": {}}}, ["speedup", "at_least"]),
    "two tests in one": (
        {"thresholds": {"speedup": {"at_least": 1, "at_most": 2}}},
        ["at_least", "at_most"],
    ),
    "no_worse_than on what is no change": (
        {"thresholds": {"speedup": {"no_worse_than": 0}}},
        ["speedup", "at_least"],
    ),
    "a figure that needs weights": (
        {"thresholds": {"clip_score_change": {"no_worse_than": -0.2}}},
        ["clip_score_change", "score.weights.clip"],
    ),
    "a figure that needs a reference": (
        {"thresholds": {"kid": {"at_most": 1}}, "score.reference": None},
        ["kid", "score.reference"],
    ),
    "FID without Inception": ({"thresholds": {"fid": {"max": 30}}}, ["fid", "inception"]),
    "a speed-up without a baseline": (
        {"thresholds": {"speedup": {"at_least": 1}}, "arms": {"tgate": {"gate_step": 5}}},
        ["speedup", "baseline"],
    ),
    "a price without a price": (
        {"thresholds": {"usd_per_1000_images": {"max": 1}}, "cost": {}},
        ["usd_per_1000_images", "GPU. Fix: set cost.usd_per_cpu_hour"],
    ),
    # the rest
    "a plugin that is not there": ({"plugins": ["no_such_module"]}, ["no_such_module"]),
    "a plugin that is a path": ({"plugins": ["./mine.py"]}, ["plugins"]),
    "an output that is a file": ({"output": __file__}, [Path(__file__).name]),
    "an output nobody can write": ({"output": "/proc/nowhere"}, ["/proc/nowhere"]),
    "an output of an unknown kind": ({"output": "ftp://host/out"}, ["ftp"]),
}


def write_header(file: str, keys: list[str]) -> None:
    """A safetensors file of empty tensors; an empty file without keys."""
    header = json.dumps({k: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for k in keys})
    content = len(header).to_bytes(8, "little") + header.encode()
    Path(file).write_bytes(content if keys else b"")


def changed(data: dict, changes: dict) -> dict:
    for key, value in changes.items():
        *parents, last = key.split(".")
        here = data
        for part in parents:
            here = here[int(part) if isinstance(here, list) else part]
        if value is ...:
            here.pop(last)
        elif isinstance(here, list):
            here[int(last)] = value
        else:
            here[last] = value
    return data


@pytest.mark.parametrize("mistake", MISTAKES)
def test_it_is_one_line_that_names_the_key_and_what_to_do(mistake, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    changes, words = MISTAKES[mistake]
    Path("captions.csv").write_text("id,caption\n1,a cat\n2,a dog\n")
    Path("flux").mkdir()
    Path("flux", "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    Path("inpaint").mkdir()
    inpaint = '{"_class_name": "StableDiffusionInpaintPipeline"}'
    Path("inpaint", "model_index.json").write_text(inpaint)
    unet = ["model.diffusion_model.out.2.weight"]
    write_header("empty.safetensors", [])
    write_header("unet.safetensors", unet)
    parts = ["first_stage_model.x", "conditioner.embedders.0.x", "conditioner.embedders.1.x"]
    write_header("sdxl.safetensors", [*unet, *parts])
    base = {
        "models": [{"name": "demo"}],
        "prompts": {"path": "captions.csv"},
        "sampling": {"steps": 25},
        "arms": {"baseline": {}, "tgate": {"gate_step": 10}},
        "workers": {"executor": "local"},
        "engine": {},
        "images": {},
        "score": {"reference": "drawn"},
        "cost": {"usd_per_cpu_hour": 0.1},
        "output": "out",
    }
    Path("run.yaml").write_text(yaml.safe_dump(changed(base, changes)))
    start = time.monotonic()
    with pytest.raises(UserError) as told:
        run(["render", "--config", "run.yaml"])
    (line,) = str(told.value).splitlines()
    for word in words:
        assert word in line
    assert time.monotonic() - start < 60  # of a machine that does other things too
    assert not Path("out").exists()


def test_there_are_sixty_of_them():
    assert len(MISTAKES) >= 60
