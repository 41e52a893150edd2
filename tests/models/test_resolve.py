"""A checkpoint under any name: its family, settings, size, scheduler and files."""

import json
import re
import shutil
from pathlib import Path

import diffusers
import pytest
import torch
from original_layout import save_as_one
from safetensors.torch import load_file, save_file

from tgate_batch.config import OWN_SCHEDULER, Lora, Model, Sampling
from tgate_batch.errors import UserError
from tgate_batch.models import catalogue
from tgate_batch.models.checkpoint import check, load_pipeline
from tgate_batch.models.description import describe_model, read_descriptions
from tgate_batch.models.family import pipeline_class
from tgate_batch.models.fingerprint import fingerprint
from tgate_batch.models.resolve import own_scheduler, resolve_model, resolve_sampling
from tgate_batch.models.schedulers import describe_scheduler
from tgate_batch.models.single_file import kind_of

FAMILIES = {
    "sd15": "sd15",
    "sd21": "sd15",  # the class is the same, and so are steps and guidance
    "sdxl": "sdxl",
    "lcm_sdxl": "lcm_sdxl",
    "pixart_alpha": "pixart_alpha",
    "pixart_sigma": "pixart_sigma",
    "lcm_pixart_alpha": "lcm_pixart_alpha",
    "kolors": "kolors",
    "sana": "sana",
    "svd": "svd",
    "wan21": "wan21",
}
SIDES = {"sd15": 64, "sd21": 64, "sdxl": 64, "lcm_sdxl": 64, "kolors": 64, "sana": 1024}
SIDES |= dict.fromkeys(("pixart_alpha", "pixart_sigma", "lcm_pixart_alpha"), 256)


@pytest.fixture(scope="module")
def tiny_of(tmp_path_factory):
    """``tiny_of(name)`` is the folder of a tiny model."""
    made: dict[str, str] = {}

    def get(name: str) -> str:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = str(catalogue.save_tiny(name, folder))
        return made[name]

    return get


@pytest.fixture
def sdxl(tiny_of, tmp_path) -> Path:
    """A tiny SDXL of one's own, to change."""
    return Path(shutil.copytree(tiny_of("sdxl"), tmp_path / "mine"))


def mine(path, **more) -> Model:
    return Model(name="mine", path=str(path), **more)


def change(file: Path, **settings) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_class_says_the_family_and_the_folder_its_size(tiny_of, name):
    found = resolve_model(mine(tiny_of(name)))
    assert found.like == FAMILIES[name]
    assert found.family is catalogue.family_of(name)
    sampling, row = (
        resolve_sampling(mine(tiny_of(name)), Sampling()),
        catalogue.entry(FAMILIES[name]),
    )
    assert (sampling.steps, sampling.guidance_scale) == (row.steps, row.guidance_scale)
    assert sampling.scheduler == OWN_SCHEDULER
    if name in SIDES:  # the denoiser's sample size times the VAE's scale
        assert (sampling.height, sampling.width) == (SIDES[name], SIDES[name])
    else:  # a video's size stands in no configuration
        assert (sampling.height, sampling.width) == (row.height, row.width)


def test_an_lcm_scheduler_without_a_guided_unet_is_four_steps_without_guidance(sdxl):
    change(sdxl / "model_index.json", scheduler=["diffusers", "LCMScheduler"])
    sampling = resolve_sampling(mine(sdxl), Sampling())
    assert (sampling.steps, sampling.guidance_scale) == (4, 1.0)


def test_a_name_of_the_catalogue_with_a_path_keeps_the_rows_size_and_the_folders_scheduler(tiny_of):
    model = Model(name="sdxl", path=tiny_of("sdxl"))
    sampling = resolve_sampling(model, Sampling())
    assert (sampling.height, sampling.scheduler) == (1024, OWN_SCHEDULER)
    assert (
        describe_scheduler(resolve_model(model), sampling)
        == "EulerDiscreteScheduler (the checkpoint's own)"
    )
    assert (
        resolve_sampling(Model(name="sdxl"), Sampling()).scheduler == "DPMSolverMultistepScheduler"
    )


def test_a_models_scheduler_comes_before_the_runs_and_own_brings_back_the_checkpoints(tiny_of):
    run = Sampling(scheduler="DDIMScheduler")
    path = tiny_of("sdxl")
    assert resolve_sampling(mine(path), run).scheduler == "DDIMScheduler"
    given = {"class": "own", "timestep_spacing": "trailing"}
    chosen = resolve_sampling(mine(path, scheduler=given), run)
    assert chosen.scheduler == OWN_SCHEDULER
    assert chosen.scheduler_arguments == {"timestep_spacing": "trailing"}
    pipeline = load_pipeline(mine(path), chosen, "cpu")
    assert type(pipeline.scheduler) is diffusers.EulerDiscreteScheduler
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    assert (
        pipeline.scheduler.config.beta_end
        == own_scheduler(resolve_model(mine(path)))[1]["beta_end"]
    )


WITH_A_FILE = [n for n in catalogue.CATALOGUE if not catalogue.family_of(n).is_generic]


@pytest.mark.parametrize("name", WITH_A_FILE)
def test_the_family_says_what_diffusers_loads_into_its_pipelines(name):
    kind, family = pipeline_class(catalogue.entry(name)), catalogue.family_of(name)
    assert hasattr(kind, "load_lora_weights") == family.loras
    assert hasattr(kind, "from_single_file") == family.single_files


def test_another_unet_and_vae_are_in_the_fingerprint_and_in_the_pipeline(sdxl, tiny_of):
    plain = fingerprint(mine(sdxl), "float32")
    unet, vae = (Path(tiny_of("vega"), part) for part in ("unet", "vae"))
    model = mine(sdxl, unet=str(unet), vae=str(vae))
    check(model, Sampling())
    pipeline = load_pipeline(model, resolve_sampling(model, Sampling()), "cpu")
    assert pipeline.unet.config.mid_block_type == "UNetMidBlock2D"
    found = {fingerprint(m, "float32") for m in (mine(sdxl), model, mine(sdxl, vae=str(vae)))}
    assert len(found) == 3
    assert plain in found
    whole = Path(shutil.copytree(sdxl, sdxl.parent / "whole"))
    for part in (unet, vae):
        shutil.rmtree(whole / part.name)
        shutil.copytree(part, whole / part.name)
    assert fingerprint(mine(whole), "float32") == fingerprint(model, "float32")


REFUSED = {
    "an unet without a config": ({"unet": "/no/such"}, ["unet", "/no/such", "config.json"]),
    "a LoRA that is not there": (
        {"loras": [{"path": "/no/such.safetensors"}]},
        ["loras.0", "such"],
    ),
    "a LoRA that is a pickle": (
        {"loras": [{"path": "/tmp", "weight_name": "lora.bin"}]},
        ["loras.0", "lora.bin", "pickles"],
    ),
    "a revision of a folder": ({"revision": "main"}, ["revision", "hub id"]),
    "a config of a folder": ({"config": "/tmp"}, ["config", "single file"]),
    "an argument of another name": (
        {"scheduler": {"class": "EulerDiscreteScheduler", "timestep_spacin": "trailing"}},
        ["scheduler", "timestep_spacin", "did you mean timestep_spacing"],
    ),
    "a value that the class does not take": (
        {"scheduler": {"class": "EulerDiscreteScheduler", "timestep_spacing": "loose"}},
        ["scheduler", "EulerDiscreteScheduler", "loose"],
    ),
    "a scheduler that is none": ({"scheduler": "EulerScheduler"}, ["scheduler", "did you mean"]),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_cannot_be_used_is_one_line_before_any_weight(sdxl, mistake):
    for weights in sdxl.rglob("*.safetensors"):
        weights.write_text("no weights")
    more, words = REFUSED[mistake]
    with pytest.raises(UserError) as told:
        check(mine(sdxl, **more), Sampling())
    (line,) = str(told.value).splitlines()
    assert line.startswith("models: mine: ")
    for word in words:
        assert word in line


def test_an_unet_of_another_class_is_refused(sdxl, tiny_of):
    with pytest.raises(UserError, match=r"unet: .* is a UNetSpatioTemporalConditionModel, and the"):
        check(mine(sdxl, unet=str(Path(tiny_of("svd"), "unet"))), Sampling())
    with pytest.raises(UserError, match="has a transformer and no U-Net"):
        check(mine(tiny_of("sana"), unet=str(sdxl / "unet")), Sampling())


def test_a_lora_for_a_family_without_them_is_refused(tiny_of):
    model = mine(tiny_of("pixart_alpha"), loras=[Lora(path="/somewhere")])
    with pytest.raises(UserError, match="loras: pipelines of this family load no LoRA"):
        check(model, Sampling())


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("unet.mid_block.attentions.0.proj_in", "does not fit this model"),  # of other channels
        ("mid_block.attentions.0.proj_in", "has no weights for this model"),  # of no part
    ],
)
def test_a_lora_of_another_model_is_told_when_it_is_loaded(sdxl, tmp_path, key, said):
    shapes = {"lora_A": (2, 7), "lora_B": (7, 2)}
    weights = {f"{key}.{name}.weight": torch.ones(shape) for name, shape in shapes.items()}
    save_file(weights, tmp_path / "lora.safetensors")
    model = mine(sdxl, loras=[Lora(path=str(tmp_path / "lora.safetensors"))])
    check(model, Sampling())
    with pytest.raises(UserError, match=rf"^models: mine: loras\.0 {said}"):
        load_pipeline(model, resolve_sampling(model, Sampling()), "cpu")


def lora_of(folder, layout: str, part: str = "unet") -> dict[str, torch.Tensor]:
    """A LoRA of a folder's denoiser, as diffusers or as kohya's trainers write it."""
    (file,) = Path(folder, part).glob("*.safetensors")
    found = {}
    for key, weight in load_file(file).items():
        if "transformer_blocks" in key and key.endswith(("to_q.weight", "to_out.0.weight")):
            (rows, columns), name = weight.shape, key.removesuffix(".weight")
            ends = ("lora_A", "lora_B") if layout == "diffusers" else ("lora_down", "lora_up")
            name = (
                f"unet.{name}" if layout == "diffusers" else f"lora_unet_{name.replace('.', '_')}"
            )
            found[f"{name}.{ends[0]}.weight"] = torch.full((2, columns), 0.1)
            found[f"{name}.{ends[1]}.weight"] = torch.full((rows, 2), 0.1)
    return found


def with_lora(path, file: Path, tensors: dict) -> Model:
    save_file(tensors, file)
    return mine(path, loras=[Lora(path=str(file))])


@pytest.mark.parametrize("layout", ["diffusers", "kohya"])
def test_how_many_layers_of_a_lora_fit_is_said_before_anything_is_loaded(tiny, tmp_path, layout):
    """Of a whole one all do; layers that the model has not are counted."""
    tensors = lora_of(tiny, layout)
    count = len(tensors) // 2
    model = with_lora(tiny, tmp_path / "lora.safetensors", tensors)
    said = describe_model(model, check(model, Sampling())).summary_line()
    assert f"loras.0 (lora.safetensors): {count} of {count} layers fit this model" in said
    more = {
        re.sub(r"(down_blocks.)0", r"\g<1>7", key): value.clone()
        for key, value in tensors.items()
        if "down_blocks" in key
    }
    model = with_lora(tiny, tmp_path / "more.safetensors", tensors | more)
    found = describe_model(model, check(model, Sampling()))
    assert f": {count} of {count + len(more) // 2} layers fit this model" in found.summary_line()
    assert read_descriptions({"mine": found.as_dict()})["mine"] == found
    model = with_lora(tiny, tmp_path / "none.safetensors", more)
    with pytest.raises(UserError, match=r"none of the \d+ layers of .*has no weights for"):
        describe_model(model, check(model, Sampling()))


def test_a_lora_of_sdxl_on_a_pruned_sdxl_says_how_much_of_it_fits(tiny_of, tmp_path):
    tensors = lora_of(tiny_of("sdxl"), "diffusers")
    model = with_lora(tiny_of("ssd_1b"), tmp_path / "lora.safetensors", tensors)
    sampling = check(model, Sampling())
    (line,) = describe_model(model, sampling).loras
    fitting = int(line.split("): ")[1].split(" of ")[0])
    before = load_pipeline(mine(tiny_of("ssd_1b")), sampling, "cpu").unet.state_dict()
    after = load_pipeline(model, sampling, "cpu").unet.state_dict()
    assert fitting == sum(not torch.equal(before[key], after[key]) for key in before)
    assert 0 < fitting < len(tensors) // 2


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("lora_unet_mid_block_attentions_0_proj_in.hada_w1_a", "a LoHa"),
        ("lora_unet_mid_block_attentions_0_proj_in.lokr_w1", "a LoKr"),
        ("unet.mid_block.attentions.0.proj_in.lokr_w2_a", "a LoKr"),
        ("lora_unet_mid_block_attentions_0_proj_in.dora_scale", "a DoRA, whose dora_scale"),
        ("bundle_emb.word.string_to_param.*", "bundled embeddings"),
        ("lora_unet_mid_block_resnets_0_conv1.lora_mid.weight", "a LoCon in CP form"),
        ("lora_unet_mid_block_resnets_0_norm1.diff_b", "has a key lora_unet_mid_block_resnets"),
    ],
)
def test_adapters_of_other_kinds_are_known_by_their_keys(tiny, tmp_path, key, said):
    """Beside the keys of a plain LoRA, which alone would be applied."""
    tensors = lora_of(tiny, "kohya") | {key: torch.ones(1)}
    with pytest.raises(UserError, match=rf"loras\.0: .*{said}.*Fix: give a plain LoRA"):
        check(with_lora(tiny, tmp_path / "lora.safetensors", tensors), Sampling())


def test_which_file_of_a_folder_is_the_lora_is_asked_where_there_are_several(sdxl, tmp_path):
    for name in ("a", "b"):
        key = "unet.mid_block.attentions.0.proj_in.lora_A.weight"
        save_file({key: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(UserError, match=r"weight_name which of .*: a\.safetensors, b\.safetensors"):
        check(mine(sdxl, loras=[Lora(path=str(tmp_path))]), Sampling())
    check(mine(sdxl, loras=[Lora(path=str(tmp_path), weight_name="b.safetensors")]), Sampling())


def test_a_single_file_without_some_of_its_weights_is_told(tiny, tmp_path):
    file = save_as_one(Path(tiny), tmp_path / "one.safetensors")
    model = mine(file, config=tiny)
    whole = load_pipeline(model, resolve_sampling(model, Sampling()), "cpu")
    assert type(whole.scheduler).__name__ == "PNDMScheduler"  # of its configurations
    weights = load_file(file)
    del weights["model.diffusion_model.middle_block.1.norm.weight"]
    save_file(weights, file)
    with pytest.raises(UserError, match=r"mine cannot be loaded from .*: weights are missing"):
        load_pipeline(model, resolve_sampling(model, Sampling()), "cpu")


@pytest.fixture
def one(tiny, tmp_path):
    """``one(tensors, metadata)`` is the tiny model as a single file with these beside."""
    whole = load_file(save_as_one(Path(tiny), tmp_path / "one.safetensors"))

    def make(tensors: dict | None = None, metadata: dict | None = None, **more) -> Model:
        file = tmp_path / f"one-{len(list(tmp_path.iterdir()))}.safetensors"
        save_file(whole | (tensors or {}), file, metadata=metadata)
        return mine(file, config=tiny, **more)

    return make


MARK = torch.zeros(1)
SAYS = {
    "a tensor": ({"v_pred": MARK}, None, {"prediction_type": "v_prediction"}),
    "the header": ({}, {"modelspec.prediction_type": "v"}, {"prediction_type": "v_prediction"}),
    "what its configurations say": ({}, {"modelspec.prediction_type": "epsilon"}, {}),
    "nothing": ({}, None, {}),
}


@pytest.mark.parametrize("how", SAYS)
def test_what_a_single_file_says_of_itself_is_how_it_samples(one, how):
    tensors, metadata, wanted = SAYS[how]
    model = one(tensors, metadata)
    sampling = check(model, Sampling())
    assert sampling.scheduler_arguments == wanted
    config = load_pipeline(model, sampling, "cpu").scheduler.config
    assert config.prediction_type == wanted.get("prediction_type", "epsilon")
    told_of = describe_model(model, sampling).summary_line()
    assert ("the file itself says prediction_type v_prediction" in told_of) == bool(wanted)
    again = describe_model(model, sampling).under(model, Sampling(scheduler="DDIMScheduler"))
    assert again.scheduler_arguments == wanted
    chosen = Sampling(scheduler={"class": "own", "prediction_type": "sample"})
    assert check(model, chosen).scheduler_arguments == {"prediction_type": "sample"}


def test_zero_terminal_snr_is_applied_where_the_scheduler_knows_it_and_asked_for_elsewhere(one):
    model = one({"v_pred": MARK, "ztsnr": MARK.clone()})
    both = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    sampling = check(model, Sampling(scheduler="DDIMScheduler"))
    assert sampling.scheduler_arguments == both
    scheduler = load_pipeline(model, sampling, "cpu").scheduler
    assert float(scheduler.alphas_cumprod[-1]) == 0
    with pytest.raises(UserError, match=r"rescale_betas_zero_snr True .* PNDMScheduler has no"):
        check(model, Sampling())


@pytest.mark.parametrize(
    ("tensors", "metadata", "said"),
    [
        ({}, {"modelspec.prediction_type": "flow"}, "modelspec.prediction_type 'flow'"),
        ({"v_pred": MARK}, {"modelspec.prediction_type": "epsilon"}, "epsilon, and its tensor"),
        ({"edm_vpred.sigma_max": MARK}, None, "EDM's kind"),
    ],
)
def test_what_a_file_says_and_nothing_applies_is_asked_for(one, tensors, metadata, said):
    model = one(tensors, metadata)
    with pytest.raises(UserError, match=said):
        check(model, Sampling())
    check(model, Sampling(scheduler={"class": "own", "prediction_type": "epsilon"}))


@pytest.mark.parametrize(("channels", "kind"), [(9, "inpainting"), (8, "edits"), (5, "depth map")])
def test_a_model_that_needs_more_than_noise_is_named_before_any_weight(one, tiny, channels, kind):
    first = "model.diffusion_model.input_blocks.0.0.weight"
    said = rf"{kind}.*: its U-Net takes {channels} channels, and its latents have 4\. Fix: "
    with pytest.raises(UserError, match=said):
        check(one({first: torch.zeros(32, channels, 3, 3)}), Sampling())
    folder = Path(shutil.copytree(tiny, Path(one().path).parent / "folder"))
    change(folder / "unet" / "config.json", in_channels=channels)
    with pytest.raises(UserError, match=said):
        check(mine(folder), Sampling())


@pytest.mark.parametrize(
    ("keys", "row"),
    [
        (["conditioner.embedders.0.x", "conditioner.embedders.1.x"], "sdxl"),
        (["edm_mean", "conditioner.embedders.1.x"], "playground25"),
        (["cond_stage_model.model.x"], "sd21"),
        (["cond_stage_model.transformer.x"], "sd15"),
        (["conditioner.embedders.0.x"], None),  # SDXL's refiner
    ],
)
def test_the_kind_of_a_single_file_is_told_by_its_text_encoders(keys, row):
    assert kind_of(["model.diffusion_model.x", *keys]) == row


def test_a_class_that_is_not_served_is_told_with_those_that_are(sdxl):
    change(sdxl / "model_index.json", _class_name="FluxInpaintPipeline")
    with pytest.raises(UserError, match="FluxInpaintPipeline"):
        check(mine(sdxl), Sampling())
    change(sdxl / "model_index.json", _class_name="FluxPipeline")
    with pytest.raises(UserError, match="a FluxPipeline, and sdxl of the catalogue is a Stable"):
        check(Model(name="sdxl", path=str(sdxl)), Sampling())


def test_a_hub_id_that_is_not_here_is_told_where_there_is_no_hub():
    with pytest.raises(UserError, match="some/finetune at v2 is not on this machine, and the hub"):
        check(mine("some/finetune", revision="v2"), Sampling())


def test_a_name_without_a_path_is_told_that_it_needs_one():
    with pytest.raises(UserError, match=r"unknown model 'mine'.*needs its path"):
        check(Model(name="mine"), Sampling())
