import itertools

from tgate_batch.records import SCHEMA, ImageRecord, image_seed


def test_seed_depends_on_run_prompt_and_number_alone_and_all_differ():
    keys = list(itertools.product((0, 1), ("1", "11", "a"), (0, 1, 11)))
    seeds = [image_seed(*key) for key in keys]
    assert seeds == [image_seed(*key) for key in keys]
    assert len(set(seeds)) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_row_has_the_columns_of_the_schema_but_for_its_files_own():
    row = ImageRecord("1", 0, "a cat", 5, "ok", image=b"x").row()
    assert ["model", "arm", *row, "digest"] == SCHEMA.names
    assert row["image"] == {"bytes": b"x", "path": None}
