"""Columns that say how their row is drawn."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from tgate_batch.config import Prompts, find, load
from tgate_batch.errors import UserError
from tgate_batch.prompts.reader import describe_columns, read_prompts
from tgate_batch.records import AS_THE_RUN, Prompt, RowSettings, Shard, image_seed

HEADER = "id,prompt,Negative_Prompt,SEED,guidance_scale,height,width,num_inference_steps\n"


@pytest.fixture
def owns(tmp_path):
    """What rows of a CSV say, in a header or one's own."""

    def found(rows: str, header: str = HEADER, **options) -> list[RowSettings]:
        file = tmp_path / "set.csv"
        file.write_text(header + rows)
        return [prompt.overrides for prompt in read_prompts(Prompts(path=str(file), **options))]

    return found


def test_columns_are_found_by_diffusers_names_without_regard_to_case(owns):
    (overrides,) = owns("1,a cat,blurry,7,4.5,512,768,30\n")
    assert overrides == RowSettings("blurry", 7, 4.5, 512, 768, 30)


def test_an_empty_cell_is_as_the_run_says(owns):
    first, second = owns("1,a cat,,,,,,\n2,a dog, ,8,,,,\n")
    assert first == AS_THE_RUN
    assert second == RowSettings(seed=8)


def test_numbers_are_read_as_pandas_writes_them(owns, tmp_path):
    (overrides,) = owns("1,a cat,,7.0,3,512.0,,\n")
    assert overrides == RowSettings(seed=7, guidance_scale=3.0, height=512)
    assert isinstance(overrides.seed, int)
    table = {"prompt": ["a", "b"], "seed": [7.0, float("nan")], "steps": pa.array([None, 5])}
    pq.write_table(pa.table(table), tmp_path / "set.parquet")
    found = [
        prompt.overrides for prompt in read_prompts(Prompts(path=str(tmp_path / "set.parquet")))
    ]
    assert found == [RowSettings(seed=7), RowSettings(steps=5)]


def test_a_column_is_renamed_or_switched_off(owns):
    header = "prompt,cfg,seed\n"
    renamed = {"guidance_scale": "CFG", "seed": None}
    assert owns("a cat,3,7\n", header, columns=renamed) == [RowSettings(guidance_scale=3.0)]
    with pytest.raises(UserError, match="has no column 'scale'; it has: prompt, cfg, seed"):
        owns("a cat,3,7\n", header, columns={"guidance_scale": "scale"})


@pytest.mark.parametrize(
    ("column", "value", "wanted"),
    [
        ("seed", "-1", "'-1' is not a valid seed (an integer from 0 to 2**63 - 1)"),
        ("seed", "1.5", "'1.5' is not a valid seed"),
        ("seed", str(1 << 63), "is not a valid seed"),
        ("guidance_scale", "high", "'high' is not a valid guidance_scale (a number of at least 0)"),
        ("guidance_scale", "inf", "is not a valid guidance_scale"),
        ("height", "500", "'500' is not a valid height (a multiple of 8, in pixels)"),
        ("width", "0", "'0' is not a valid width"),
        ("steps", "0", "'0' is not a valid steps (an integer from 1 to 1000)"),
        ("steps", "1001", "is not a valid steps"),
    ],
)
def test_a_bad_value_is_one_line_with_its_row(owns, column, value, wanted):
    header = f"id,prompt,{column}\n"
    with pytest.raises(UserError) as caught:
        owns(f"1,a cat,\n2,a dog,{value}\n", header, columns={column: column})
    said = str(caught.value)
    assert "set.csv, row 3: " in said
    assert wanted in said
    assert f"in column {column!r}" in said
    assert f"prompts.columns.{column}: null" in said


@pytest.mark.parametrize("cell", ["nan", "NaN", " nan "])
def test_pandas_text_of_an_empty_cell_is_an_empty_cell(owns, cell):
    header = "id,prompt,negative_prompt,guidance_scale,seed\n"
    assert owns(f"1,a cat,{cell},{cell},7\n", header) == [RowSettings(seed=7)]
    with pytest.raises(UserError, match="row 2: no text but 'nan' in column 'prompt'"):
        owns("1,nan,,,7\n", header)


SIZE_TABLE = "caption,height,width\na cat,640,424\n"
DIFFUSIONDB = "image_name,prompt,seed,step,cfg,width,height\n1.png,a cat,7,50,12,512,704\n"


@pytest.mark.parametrize(
    ("table", "given", "named"),
    [
        (SIZE_TABLE, {"height", "width"}, {"height": "height", "width": "width"}),
        (SIZE_TABLE, set(), {"height": "height", "width": "width"}),
        ("prompt,Seed\na cat,7\n", {"seed"}, {"seed": "Seed"}),
        (
            DIFFUSIONDB,
            set(),
            {
                "seed": "seed",
                "height": "height",
                "width": "width",
                "guidance_scale": "cfg",
                "steps": "step",
            },
        ),
    ],
)
def test_columns_that_may_only_describe_are_asked_about_with_the_keys_to_write(
    tmp_path, table, given, named
):
    file = tmp_path / "set.csv"
    file.write_text(table)
    with pytest.raises(UserError) as caught:
        list(read_prompts(Prompts(path=str(file)), given=given))
    said = str(caught.value)
    yes, no = (yaml.safe_load("{" + part.partition("}")[0] + "}") for part in said.split("{")[1:])
    assert yes == named
    assert set(no.values()) == {None}
    (meant,) = read_prompts(Prompts(path=str(file), columns=yes), given=given)
    assert {key for key, value in meant.overrides._asdict().items() if value is not None} == set(
        named
    )
    (plain,) = read_prompts(Prompts(path=str(file), columns=no), given=given)
    assert plain.overrides == AS_THE_RUN


def test_a_row_that_is_the_first_with_a_setting_has_it(tmp_path):
    file = tmp_path / "set.jsonl"
    file.write_text('{"prompt": "a"}\n{"prompt": "b", "seed": 7}\n{"prompt": "c"}\n')
    found = [prompt.overrides for prompt in read_prompts(Prompts(path=str(file)))]
    assert found == [AS_THE_RUN, RowSettings(seed=7), AS_THE_RUN]
    with pytest.raises(UserError, match=r"the config gives sampling\.seed too"):
        list(read_prompts(Prompts(path=str(file)), given={"seed"}))


def test_shipped_config_of_mlperf_works_on_a_table_of_its_columns(tmp_path):
    shipped = load(find("mlperf_sdxl"))
    file = tmp_path / "captions.tsv"
    file.write_text(
        "id\timage_id\tcaption\theight\twidth\tfile_name\tcoco_url\n"
        "70\t27\tA harbour.\t640\t480\ta.jpg\tu\n71\t28\tA clock.\t640\t425\tb.jpg\tu\n"
    )
    spec = shipped.prompts.model_copy(update={"path": str(file)})
    found = list(read_prompts(spec, given=shipped.sampling.given))
    assert [(prompt.id, prompt.overrides) for prompt in found] == [
        ("70", AS_THE_RUN),
        ("71", AS_THE_RUN),
    ]


MLPERF = Path(__file__).parents[3] / "shared" / "data" / "mlperf_coco2014_5k_captions.tsv"


@pytest.mark.skipif(not MLPERF.is_file(), reason="the real table is not here")
def test_shipped_config_of_mlperf_works_on_the_real_table():
    shipped = load(find("mlperf_sdxl"))
    spec = shipped.prompts.model_copy(update={"path": str(MLPERF)})
    found = list(read_prompts(spec, given=shipped.sampling.given))
    assert len(found) == 5000
    assert {prompt.overrides for prompt in found} == {AS_THE_RUN}


def test_a_value_of_another_kind_is_told(tmp_path):
    file = tmp_path / "set.jsonl"
    for value, said in [
        ("true", "True is not a valid seed"),
        ("[7]", "a list is not a valid seed"),
    ]:
        file.write_text('{"prompt": "a", "seed": %s}' % value)  # noqa: UP031
        with pytest.raises(UserError, match=f"row 1: {said}"):
            list(read_prompts(Prompts(path=str(file))))
    file.write_text('{"prompt": "a", "negative_prompt": 7}')
    with pytest.raises(UserError, match="7 is not text in column 'negative_prompt'"):
        list(read_prompts(Prompts(path=str(file))))


def test_unused_columns_are_named_and_kept_when_asked(tmp_path):
    file = tmp_path / "set.csv"
    file.write_text("id,prompt,seed,Mood,note\n1,a cat,7,calm,\n")

    def found(**options):
        spec = Prompts(path=str(file), **options)
        (prompt,) = read_prompts(spec)
        return (
            prompt.extra_columns,
            describe_columns(spec).extra_columns,
            describe_columns(spec).unused,
        )

    assert found() == (None, (), ("Mood", "note"))
    assert found(keep=["mood"]) == ('{"Mood": "calm"}', ("Mood",), ("note",))
    assert found(keep=True) == ('{"Mood": "calm", "note": ""}', ("Mood", "note"), ())
    with pytest.raises(UserError, match="has no column 'other'"):
        found(keep=["other"])


@pytest.mark.parametrize("empty", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": ""}])
def test_empty_picture_of_a_parquet_struct_is_a_row_without_one(tmp_path, png, empty):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pictures = pa.array([{"bytes": png, "path": None}, empty], type=kind)
    columns = {"caption": ["a", "b"], "image": pictures, "strength": [0.5, None]}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    first, second = read_prompts(Prompts(path=str(tmp_path / "set.parquet")))
    assert (first.image, first.overrides.strength) == (png, 0.5)
    assert (second.image, second.overrides) == (None, RowSettings())


def test_row_with_neither_a_caption_nor_a_picture_is_refused(tmp_path, png):
    (tmp_path / "0.png").write_bytes(png)
    (tmp_path / "set.csv").write_text("id,image,strength\na,0.png,0.5\nb,,\n")
    with pytest.raises(UserError, match="row 3: no image in column 'image'"):
        list(read_prompts(Prompts(path=str(tmp_path / "set.csv"))))


def test_strength_under_another_name_is_refused_where_there_are_no_pictures(tmp_path):
    (tmp_path / "set.csv").write_text("caption,denoise\na cat,0.5\n")
    with pytest.raises(UserError, match=r"columns.strength 'denoise' needs input images"):
        list(read_prompts(Prompts(path=str(tmp_path / "set.csv"), columns={"strength": "denoise"})))


def test_all_that_a_row_says_is_in_its_shards_digest():
    def digest(**changes) -> str:
        return Shard(0, (Prompt("a", "text")._replace(**changes),)).digest

    plain = digest()
    assert digest(category="x", source_row=7) == plain
    changed = [digest(overrides=RowSettings(**{field: 8})) for field in RowSettings._fields]
    assert len({plain, digest(extra_columns="{}"), *changed}) == len(changed) + 2


def test_digest_of_rows_without_a_strength_is_what_it_was_before_there_was_one():
    overrides = RowSettings("blurry", 7, 4.5, 512, 768, 30)
    rows = Prompt("a", "a cat", overrides=overrides, extra_columns="{}"), Prompt("b", "a dog")
    assert Shard(0, rows).digest.startswith("9187974d75fb16bcd76c6cdb877f48f9")


def test_a_rows_seed_is_its_first_pictures_and_others_are_made_of_it():
    assert image_seed(0, "a", 0, row_seed=7) == 7
    others = {image_seed(0, "a", number, row_seed=7) for number in range(1, 5)}
    assert len(others | {7}) == 5
    assert image_seed(1, "b", 3, row_seed=7) in others  # neither run nor prompt enters
    assert image_seed(0, "a", 0) == image_seed(0, "a", 0, row_seed=None) != image_seed(0, "b", 0)
