"""Shuffled prompts: an order that depends on ids and the seed alone."""

from tgate_batch.config import Prompts
from tgate_batch.prompts.reader import read_prompts


def ids(path, **settings):
    return [prompt.id for prompt in read_prompts(Prompts(path=str(path), **settings))]


def captions(folder, order):
    file = folder / f"captions-{order[0]}.csv"
    file.write_text("id,caption\n" + "".join(f"c{n},a circle {n}\n" for n in order))
    return file


def test_the_order_does_not_depend_on_that_of_the_file(tmp_path):
    up, down = captions(tmp_path, range(50)), captions(tmp_path, range(49, -1, -1))
    assert ids(up, shuffle=1) == ids(down, shuffle=1) != ids(up)
    assert sorted(ids(up, shuffle=1)) == sorted(ids(up))


def test_each_seed_has_its_own_order(tmp_path):
    file = captions(tmp_path, range(50))
    assert ids(file, shuffle=1) != ids(file, shuffle=2)


def test_a_limit_takes_the_first_part_of_the_order(tmp_path):
    file = captions(tmp_path, range(50))
    assert ids(file, shuffle=1, limit=7) == ids(file, shuffle=1)[:7]


def test_a_prompt_keeps_its_row_of_the_file(tmp_path):
    file = captions(tmp_path, range(50))
    rows = {p.id: p.source_row for p in read_prompts(Prompts(path=str(file), shuffle=1))}
    assert rows["c7"] == 7
