"""Rows that begin with a picture of their own, from the prompt set to the report."""

import csv
import hashlib
import io
import json
from pathlib import Path

import diffusers
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tgate_batch import config, workflow
from tgate_batch.errors import UserError
from tgate_batch.gate import GatePlan, gated
from tgate_batch.models import catalogue
from tgate_batch.models.family import first_image
from tgate_batch.models.macs.arm import macs_of_arm
from tgate_batch.models.pipeline_runner import PipelineRunner
from tgate_batch.output.run import load_run
from tgate_batch.records import Prompt, RowSettings, Shard
from tgate_batch.render.renderer import Renderer

SIDE = 32
ARMS = {
    "baseline": {},
    "tgate": {"gate_step": 0.5, "sp_interval": 2},
    "euler": {"scheduler": "EulerDiscreteScheduler"},
}
PIPELINES = {
    "sd15": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
}


def picture(number: int, side: int = SIDE) -> bytes:
    """A picture of its own for each number."""
    content = io.BytesIO()
    ramp = Image.linear_gradient("L").resize((side, side)).rotate(90 * number)
    Image.merge("RGB", [ramp, ramp.rotate(90), ramp.point([number * 20] * 256)]).save(
        content, "PNG"
    )
    return content.getvalue()


def prompts(count: int, strength: float = 0.5) -> list[Prompt]:
    overrides = RowSettings(strength=strength)
    return [
        Prompt(f"p{n}", f"number {n}", picture(n), overrides=overrides, source_row=n)
        for n in range(count)
    ]


def runner(name: str, steps: int = 6, batch: int = 4) -> PipelineRunner:
    sampling = config.Sampling(steps=steps, height=SIDE, width=SIDE, batch_size=batch)
    return PipelineRunner(
        catalogue.tiny(name), catalogue.family_of(name), catalogue.resolve(name, sampling)
    )


def drawn(made: PipelineRunner, chosen: list[Prompt], arm: str) -> dict[str, bytes]:
    renderer = Renderer(made, config.Images(format="png", mark=False), "test")
    rows = renderer.render(Shard(0, tuple(chosen)), arm, config.Arm(**ARMS[arm]))
    found = [row() for row in list(rows)]
    assert {row.error for row in found} == {None}
    return {row.prompt_id: row.image for row in found}


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_latents_are_those_of_plain_diffusers_at_the_same_batch(name):
    made, chosen = runner(name), prompts(4)
    plan = GatePlan(0.5, sp_interval=2)
    with made.applying(
        config.Arm(**ARMS["tgate"]),
        config.effective_sampling(made.sampling, row=chosen[0].overrides),
    ):
        found = made.denoise(made.encode(chosen), [7, 8, 9, 10])
    extra = {"add_watermarker": False} if name == "sdxl" else {}
    plain = PIPELINES[name](**made.pipeline.components, **extra)
    plain.set_progress_bar_config(disable=True)
    with torch.inference_mode(), gated(plain, plan):
        expected = plain(
            [prompt.text for prompt in chosen],
            image=[first_image(prompt, made.sampling) for prompt in chosen],
            strength=0.5,
            num_inference_steps=6,
            guidance_scale=made.sampling.guidance_scale,
            generator=[torch.Generator().manual_seed(seed) for seed in (7, 8, 9, 10)],
            output_type="latent",
        )[0]
    assert torch.equal(found, expected)


def test_every_family_that_says_so_has_its_pipeline_in_diffusers_and_no_other():
    from diffusers.pipelines.auto_pipeline import (
        AUTO_IMAGE2IMAGE_PIPELINES_MAPPING,
        _get_task_class,
    )

    for name, row in catalogue.CATALOGUE.items():
        if catalogue.family_of(name).is_generic:  # it begins with noise in every class
            continue
        kind = row.pipeline.rpartition(".")[2]
        found = _get_task_class(AUTO_IMAGE2IMAGE_PIPELINES_MAPPING, kind, False)
        takes_encoded = name != "kolors"
        assert catalogue.family_of(name).from_pictures == (found is not None and takes_encoded)


def test_pipeline_of_kolors_forgets_the_pooled_prompts():
    """Once it does not, the family can begin with pictures."""
    made, (prompt,) = runner("kolors", batch=1), prompts(1)
    with (
        made.applying(config.Arm(), config.effective_sampling(made.sampling, row=prompt.overrides)),
        pytest.raises(AttributeError),
    ):
        made.denoise(made.encode([prompt]), [1])


@pytest.mark.parametrize("arm", sorted(ARMS))
def test_picture_is_the_same_alone_among_others_and_in_every_place(arm):
    made, chosen = runner("sd15"), prompts(6)
    whole = drawn(made, chosen, arm)
    assert len(set(whole.values())) == 6
    assert drawn(made, chosen[::-1], arm) == whole
    for prompt in chosen:
        assert drawn(made, [prompt], arm) == {prompt.id: whole[prompt.id]}


def test_rows_with_and_without_a_picture_share_a_shard_and_not_a_batch():
    made = runner("sd15")
    texts = [prompt._replace(image=None, overrides=RowSettings()) for prompt in prompts(3)]
    pictures = [prompt._replace(id=f"i{prompt.id}") for prompt in prompts(3, 0.9)]
    mixed = [one for pair in zip(texts, pictures, strict=True) for one in pair]
    apart = drawn(made, texts, "tgate") | drawn(made, pictures, "tgate")
    assert drawn(made, mixed, "tgate") == apart


def test_picture_that_is_none_is_a_row_with_an_error_and_its_neighbours_are_drawn():
    made, chosen = runner("sd15"), prompts(3)
    whole = drawn(made, chosen, "baseline")
    chosen[1] = chosen[1]._replace(image=b"no picture")
    renderer = Renderer(made, config.Images(format="png", mark=False), "test")
    rows = [row() for row in list(renderer.render(Shard(0, tuple(chosen)), "arm", config.Arm()))]
    assert [row.status for row in rows] == ["ok", "error", "ok"]
    assert "cannot be read as an image" in rows[1].error
    assert [rows[0].image, rows[2].image] == [whole["p0"], whole["p2"]]


def test_picture_is_turned_upright_and_brought_to_the_size_that_is_drawn():
    content = io.BytesIO()
    half = Image.new("L", (16, 8))
    half.paste(255, (8, 0, 16, 8))  # white on the right, and to be turned by a quarter
    exif = Image.Exif()
    exif[0x0112] = 6
    half.save(content, "PNG", exif=exif)
    sampling = runner("sd15").sampling.model_copy(update={"height": 64, "width": 32})
    found = first_image(Prompt("p", "text", content.getvalue()), sampling)
    assert (found.size, found.mode) == ((32, 64), "RGB")
    assert found.getpixel((16, 2)) == (0, 0, 0)
    assert found.getpixel((16, 61)) == (255, 255, 255)


def test_grey_of_sixteen_bits_is_as_bright_as_that_of_eight():
    found = []
    for grey in (Image.new("I;16", (8, 8), 100 * 257), Image.new("L", (8, 8), 100)):
        content = io.BytesIO()
        grey.save(content, "PNG")
        upright = first_image(Prompt("p", "text", content.getvalue()), runner("sd15").sampling)
        found.append(upright.getpixel((3, 3)))
    assert found == [(100, 100, 100)] * 2


def test_batches_with_pictures_write_nothing_to_the_log(caplog):
    made, chosen = runner("sdxl", steps=2, batch=1), prompts(1)
    with made.applying(
        config.Arm(), config.effective_sampling(made.sampling, row=chosen[0].overrides)
    ):
        made.decode(made.denoise(made.encode(chosen), [1]))
    assert not [record for record in caplog.records if "float32" in record.message]


def test_steps_that_are_run_are_those_that_diffusers_runs():
    made, (prompt,) = runner("sd15", steps=7, batch=1), prompts(1)
    made.pipeline.scheduler = diffusers.DDIMScheduler()
    for strength in (0.15, 0.3, 0.58, 0.99, 1.0):
        sampling = config.effective_sampling(made.sampling, row=RowSettings(strength=strength))
        with made.applying(config.Arm(), sampling):
            made.denoise(
                made.encode([prompt._replace(overrides=RowSettings(strength=strength))]), [1]
            )
            assert made._drawing._num_timesteps == sampling.steps_run


def write(folder: Path, rows: list[tuple]) -> Path:
    """A set of these (id, picture's number, strength) rows, with pictures beside it."""
    for number in range(3):
        (folder / f"{number}.png").write_bytes(picture(number, side=48))
    file = folder / "set.csv"
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["id", "caption", "image", "strength"])
        writer.writerows(
            [name, f"a picture of {name}", f"{number}.png" if number != "" else "", strength]
            for name, number, strength in rows
        )
    return file


def run_of(tiny: str, folder: Path, file: Path, **prompt_settings) -> config.Config:
    return config.parse(
        {
            "models": [{"name": "sd15", "path": tiny}],
            "prompts": {"path": str(file), "shard_size": 4, **prompt_settings},
            "sampling": {"steps": 8, "height": SIDE, "width": SIDE, "batch_size": 2},
            "arms": {name: ARMS[name] for name in ("baseline", "tgate")},
            "workers": {"executor": "local"},
            "output": str(folder / "out"),
        }
    )


ROWS = [("p0", 0, 0.5), ("p1", "", ""), ("p2", 1, 0.75), ("p3", 2, 0.5), ("p4", 0, 0.5)]


def rows_of(run: config.Config, arm: str) -> dict[str, dict]:
    files = sorted(Path(run.output, "images", "sd15", arm).glob("*.parquet"))
    return {row["prompt_id"]: row for file in files for row in pq.read_table(file).to_pylist()}


def test_set_with_pictures_goes_through_the_job_resumes_and_is_drawn_again_alike(tiny, tmp_path):
    run = run_of(tiny, tmp_path, write(tmp_path, ROWS))
    assert workflow.render(run) == workflow.DONE
    found = rows_of(run, "tgate")
    assert {name: row["strength"] for name, row in found.items()} == {
        "p0": 0.5, "p1": None, "p2": 0.75, "p3": 0.5, "p4": 0.5
    }  # fmt: skip
    assert len({hashlib.sha256(row["image"]["bytes"]).digest() for row in found.values()}) == 5
    held = load_run(run.output)
    arm = run.arms["tgate"]
    of = {
        strength: macs_of_arm(
            run.models[0],
            arm,
            held.sampling("sd15").model_copy(update={"strength": strength}),
        ).per_image
        for strength in (None, 0.5, 0.75)
    }
    assert of[0.5] < of[0.75] < of[None]
    for file in Path(run.output, "images", "sd15", "tgate").glob("*.parquet"):
        table = pq.read_table(file)
        (strength,) = set(table.column("strength").to_pylist())
        assert int(table.schema.metadata[b"macs_per_image"]) == of[strength]
    assert workflow.verify(run.output, again=4) == workflow.DONE
    lost = sorted(Path(run.output, "images", "sd15", "tgate").glob("*.parquet"))[0]
    lost.unlink()
    assert workflow.render(run) == workflow.DONE
    again = rows_of(run, "tgate")
    assert all(again[name]["image"] == row["image"] for name, row in found.items())


def test_strength_of_the_set_is_that_of_rows_that_say_none(tiny, tmp_path):
    rows = [("p0", 0, ""), ("p1", "", ""), ("p2", 1, 0.75)]
    run = run_of(tiny, tmp_path, write(tmp_path, rows), strength=0.25)
    assert workflow.render(run) == workflow.DONE
    found = rows_of(run, "baseline")
    assert [found[name]["strength"] for name in ("p0", "p1", "p2")] == [0.25, None, 0.75]


def without_strength(file: Path) -> None:
    """Writes a file of an output again as it was before rows had a strength, or a digest."""
    with pq.ParquetFile(file) as read:
        said_of_it = read.metadata.metadata.items()
        footer = {key: value for key, value in said_of_it if b":" not in key and b"seal" not in key}
        later = [name for name in ("strength", "digest") if name in read.schema_arrow.names]
        groups = [read.read_row_group(n).drop_columns(later) for n in range(read.num_row_groups)]
    if b"huggingface" in footer:
        said = json.loads(footer[b"huggingface"])
        for name in later:
            del said["info"]["features"][name]
        footer[b"huggingface"] = json.dumps(said).encode()
    schema = groups[0].schema.with_metadata(footer)
    with pq.ParquetWriter(file, schema, write_page_checksum=True) as writer:
        for group in groups:
            writer.write_table(group.cast(schema))


@pytest.mark.slow
def test_output_from_before_rows_had_a_strength_is_sound_and_takes_rows_with_pictures(
    tiny, tmp_path
):
    file = write(tmp_path, [])
    texts = "".join(f"p{n},text {n},{n}\n" for n in range(4))
    file.write_text("id,caption,seed\n" + texts)
    run = run_of(tiny, tmp_path, file)
    assert workflow.render(run) == workflow.DONE
    for kind in ("images", "prompts"):
        for older in Path(run.output, kind).rglob("*.parquet"):
            without_strength(older)
    assert workflow.verify(run.output, again=2) == workflow.DONE
    wider = texts.replace("\n", ",,\n") + "p4,text 4,4,0.png,0.5\np5,text 5,5,1.png,0.5\n"
    file.write_text("id,caption,seed,image,strength\n" + wider)
    assert workflow.render(run) == workflow.DONE
    found = rows_of(run, "baseline")
    assert {name: row.get("strength") for name, row in found.items()} == {
        "p0": None, "p1": None, "p2": None, "p3": None, "p4": 0.5, "p5": 0.5
    }  # fmt: skip
    assert workflow.verify(run.output, again=6) == workflow.DONE


def test_pictures_beside_captions_without_a_strength_are_not_used(tiny, tmp_path, capsys):
    file = write(tmp_path, [("p0", 0, ""), ("p1", 1, "")])
    run = run_of(tiny, tmp_path, file, columns={"strength": None})
    assert workflow.dry_run(run) == workflow.DONE
    assert "prompts: not used: columns image, strength" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([("p0", 0, 0.5), ("p1", "", 0.5)], "row 3: strength 0.5 needs an image, but the row"),
        ([("p0", 0, 0.5), ("p1", 1, "")], "row 3: it has an image in column 'image' but no"),
        ([("p0", 0, 0.0)], "'0.0' is not a valid strength (a number above 0 and at most 1)"),
        ([("p0", 0, 1.5)], "'1.5' is not a valid strength"),
        ([("p0", 0, 0.5), ("p1", 1, 0.1)], "row 2 of the set (strength 0.1): arms.baseline"),
    ],
)
def test_row_that_cannot_begin_with_its_picture_is_told_before_anything_is_drawn(
    tiny, tmp_path, rows, said
):
    run = run_of(tiny, tmp_path, write(tmp_path, rows))
    with pytest.raises(UserError) as caught:
        workflow.prepare(run)
    assert said in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_gate_beyond_the_steps_that_a_row_runs_is_told_with_the_row(tiny, tmp_path):
    run = run_of(tiny, tmp_path, write(tmp_path, [("p0", 0, 0.5)]))
    late = run.model_copy(update={"arms": {"late": config.Arm(gate_step=6)}})
    with pytest.raises(UserError, match=r"row 1 of the set \(strength 0.5\): arms.late with sd15"):
        workflow.prepare(late)


def test_scheduler_that_adds_no_noise_is_told_before_anything_is_drawn(tiny, tmp_path):
    run = run_of(tiny, tmp_path, write(tmp_path, [("p0", 0, 0.5)]))
    other = run.model_copy(update={"arms": {"ipndm": config.Arm(scheduler="IPNDMScheduler")}})
    with pytest.raises(UserError, match="with sd15: IPNDMScheduler cannot add noise"):
        workflow.prepare(other)


def test_set_without_pictures_refuses_a_strength_for_all(tiny, tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("id,caption\np0,a picture\n")
    with pytest.raises(
        UserError, match=r"prompts.strength 0.5 needs input images, but .* no column"
    ):
        workflow.prepare(run_of(tiny, tmp_path, file, strength=0.5))


def test_family_without_such_a_pipeline_refuses_pictures(settings, tmp_path):
    settings |= {"models": ["pixart_sigma"], "arms": {"baseline": {}}}
    settings |= {"prompts": {"path": str(write(tmp_path, [("p0", 0, 0.5)]))}}
    with pytest.raises(UserError, match="pixart_sigma: diffusers has no image-to-image pipeline"):
        workflow.prepare(config.parse(settings))
