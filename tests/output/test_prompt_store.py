import io

import pytest
from PIL import Image

from tgate_batch.config import Prompts
from tgate_batch.errors import UserError
from tgate_batch.output import layout, prompt_plan, prompt_store
from tgate_batch.output.prompt_plan import StalePrompts
from tgate_batch.output.provenance import Provenance
from tgate_batch.prompts.reader import read_prompts
from tgate_batch.storage import Folder


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path / "out"))


def image(shade: int) -> bytes:
    content = io.BytesIO()
    Image.new("L", (2, 2), shade).save(content, "PNG")
    return content.getvalue()


def spec(captions, **changes) -> Prompts:
    return Prompts(path=str(captions), **{"shard_size": 4, **changes})


def freeze(folder, wanted) -> prompt_plan.PromptPlan:
    ledger = Provenance(folder)
    plan = prompt_plan.plan_shards(folder, wanted, ledger)
    prompt_plan.store_prompts(folder, wanted, plan)
    ledger.record(layout.PROMPTS, plan.source)
    return plan


def ids(folder) -> list[list[str]]:
    shards = prompt_store.stored_shards(folder)
    return [[p.id for p in prompt_store.load_shard(folder, shard).prompts] for shard in shards]


def test_planning_writes_nothing(folder, captions):
    plan = prompt_plan.plan_shards(folder, spec(captions), Provenance(folder))
    assert [shard.prompts for shard in plan.shards] == [4, 4, 2]
    assert folder.names("") == []


def test_frozen_shards_are_those_planned(folder, captions):
    plan = freeze(folder, spec(captions))
    assert prompt_store.stored_shards(folder) == plan.shards
    assert ids(folder) == [
        ["c0", "c1", "c2", "c3"],
        ["c4", "c5", "c6", "c7"],
        ["c8", "c9"],
    ]


@pytest.mark.parametrize("harm", ["page", "footer", "gone"])
@pytest.mark.parametrize("shards_a_file", [1000, 1])
def test_parts_are_written_again_with_the_same_bytes(
    folder, captions, monkeypatch, harm, shards_a_file
):
    monkeypatch.setattr(prompt_plan, "SHARDS_A_FILE", shards_a_file)
    wanted = spec(captions)
    freeze(folder, wanted)
    name = folder.names(layout.PROMPTS)[-1]
    whole = folder.read(name)
    if harm == "gone":
        folder.delete(name)
    else:
        place = whole.index(b"a picture") if harm == "page" else len(whole) - 30
        folder.write(name, whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    prompt_plan.rewrite_parts(folder, wanted, Provenance(folder), 1, [name])
    assert folder.read(name) == whole


def test_parts_are_not_written_again_from_another_file(folder, captions):
    wanted = spec(captions)
    freeze(folder, wanted)
    captions.write_text(captions.read_text() + "c10,one more\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"is not the original one .* Fix: put the original"):
        prompt_plan.rewrite_parts(folder, wanted, Provenance(folder), 1, [layout.prompts_part(0)])
    captions.unlink()
    with pytest.raises(UserError, match=r"cannot be read\. Fix: put it back"):
        prompt_plan.rewrite_parts(folder, wanted, Provenance(folder), 1, [layout.prompts_part(0)])


def test_damaged_prompts_are_told_in_a_line_with_the_command_that_mends_them(folder, captions):
    (first, *_) = freeze(folder, spec(captions)).shards
    name = layout.prompts_part(0)
    whole = folder.read(name)
    place = whole.index(b"a picture")
    folder.write(name, whole[:place] + b"A" + whole[place + 1 :])
    for read_ in (prompt_store.load_shard, prompt_store.categories):
        if read_ is prompt_store.categories:
            folder.delete(name)
        with pytest.raises(UserError, match=r"part-00000\.parquet is .* --repair"):
            read_(folder, first)


def test_unchanged_source_is_not_read_again(folder, captions, monkeypatch):
    freeze(folder, spec(captions))
    monkeypatch.setattr(prompt_plan, "read_prompts", None)
    assert len(prompt_plan.plan_shards(folder, spec(captions), Provenance(folder)).shards) == 3


def test_source_that_is_gone_does_no_harm_to_what_is_frozen(folder, captions):
    freeze(folder, spec(captions))
    captions.unlink()
    assert (
        list(prompt_store.texts(folder, prompt_store.stored_shards(folder)))[9]
        == "a picture of number 9"
    )


def test_more_prompts_join_as_further_shards(folder, captions):
    before = freeze(folder, spec(captions, limit=6)).shards
    after = freeze(folder, spec(captions)).shards
    assert after[:2] == before
    assert ids(folder) == [["c0", "c1", "c2", "c3"], ["c4", "c5"], ["c6", "c7", "c8", "c9"]]


def test_another_shard_size_keeps_what_is_cut(folder, captions):
    freeze(folder, spec(captions))
    assert [shard.prompts for shard in freeze(folder, spec(captions, shard_size=3)).shards] == [
        4,
        4,
        2,
    ]


@pytest.mark.parametrize("change", ["a changed caption", "fewer prompts"])
def test_other_prompts_are_refused(folder, captions, change):
    freeze(folder, spec(captions))
    if change == "a changed caption":
        captions.write_text(captions.read_text().replace("number 5", "number five"))
        wanted = spec(captions)
    else:
        wanted = spec(captions, limit=7)
    with pytest.raises(StalePrompts, match=r"other prompts .* shard 1"):
        prompt_plan.plan_shards(folder, wanted, Provenance(folder))


def test_source_that_changes_between_plan_and_freezing_is_noticed(folder, captions):
    plan = prompt_plan.plan_shards(folder, spec(captions), None)
    captions.write_text(captions.read_text().replace("number 9", "number nine"))
    with pytest.raises(UserError, match="changed while it was read"):
        prompt_plan.store_prompts(folder, spec(captions), plan)
    assert folder.names("") == []


def test_part_files_hold_a_thousand_shards_at_most(folder, tmp_path):
    source = tmp_path / "many.txt"
    source.write_text("".join(f"number {i}\n" for i in range(1001)))
    plan = freeze(folder, spec(source, shard_size=1))
    assert folder.names("") == [layout.LEDGER, layout.prompts_part(0), layout.prompts_part(1)]
    assert prompt_store.load_shard(folder, plan.shards[1000]).prompts[0].text == "number 1000"


def test_conditioning_pictures_are_frozen_too(folder, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = tmp_path / "pictures.parquet"
    one, two = image(1), image(2)
    pq.write_table(pa.table({"id": ["a", "b"], "image": [one, two]}), source)
    plan = freeze(folder, spec(source, image_column="image"))
    assert [p.image for p in prompt_store.load_shard(folder, plan.shards[0]).prompts] == [one, two]


def test_damaged_part_is_one_clear_line(folder, captions):
    freeze(folder, spec(captions))
    folder.write(layout.prompts_part(0), b"PAR1")
    with pytest.raises(UserError, match=r"part-00000\.parquet is damaged"):
        prompt_store.stored_shards(folder)


def test_rows_with_settings_are_frozen_in_shards_of_their_kinds(folder, tmp_path):
    source = tmp_path / "rows.csv"
    rows = [f"c{i},number {i},{512 if i % 2 else ''},{i}\n" for i in range(10)]
    source.write_text("id,caption,height,seed\n" + "".join(rows))
    plan = freeze(folder, spec(source, keep=True))
    assert [shard.batch_key.height for shard in plan.shards] == [None, 512, None, 512]
    assert [shard.first for shard in plan.shards] == [0, 1, 8, 9]
    assert prompt_store.stored_shards(folder) == plan.shards
    found = [
        prompt for shard in plan.shards for prompt in prompt_store.load_shard(folder, shard).prompts
    ]
    assert sorted(found, key=lambda prompt: prompt.source_row) == list(
        read_prompts(spec(source, keep=True))
    )


def test_rows_without_settings_know_their_place(folder, captions):
    plan = freeze(folder, spec(captions, offset=2))
    last = prompt_store.load_shard(folder, plan.shards[-1]).prompts[-1]
    assert (last.id, last.source_row) == ("c9", 9)


def test_a_longer_set_of_several_kinds_is_not_cut_again(folder, tmp_path):
    source = tmp_path / "rows.csv"
    rows = [f"c{i},number {i},{(256, 512, 768)[i % 3]}\n" for i in range(30)]
    source.write_text("id,caption,height\n" + "".join(rows))
    columns = {"height": "height"}
    before = freeze(folder, spec(source, limit=13, columns=columns)).shards
    after = freeze(folder, spec(source, columns=columns)).shards
    assert after[: len(before)] == before
    assert sum(shard.prompts for shard in after) == 30
    assert sorted(name for shard in ids(folder) for name in shard) == sorted(
        f"c{number}" for number in range(30)
    )


def test_a_setting_that_is_new_is_named_where_the_prompts_become_others(folder, captions):
    freeze(folder, spec(captions))
    with pytest.raises(StalePrompts, match=r"shard 0; changed: prompts\.keep\)"):
        prompt_plan.plan_shards(folder, spec(captions, keep=["id"]), Provenance(folder))
