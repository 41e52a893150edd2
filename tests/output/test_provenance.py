import json

import pytest

from tgate_batch.errors import UserError
from tgate_batch.output import layout
from tgate_batch.output.provenance import Provenance
from tgate_batch.storage import Folder

NAME = "images/m/a"
OLD, NEW = {"gate_step": 20, "seed": 0}, {"gate_step": 5, "seed": 0}


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path))


def entered(folder, settings=OLD) -> Provenance:
    ledger = Provenance(folder)
    ledger.enter(NAME, settings)
    folder.write(f"{NAME}/shard-00000.parquet", "x")
    return ledger


def test_entry_is_on_disk_before_the_first_file(folder):
    Provenance(folder).enter(NAME, OLD)
    assert Provenance(folder)[NAME] == OLD
    assert folder.names("images") == []


def test_difference_has_the_settings_name_and_both_values(folder):
    ledger = entered(folder)
    assert ledger.differences(NAME, NEW) == {"gate_step": (20, 5)}
    assert ledger.differences(NAME, OLD) == {}
    assert ledger.differences(NAME, {**OLD, "later": 1}) == {"later": (None, 1)}
    assert ledger.differences(NAME, {"seed": 0}) == {"gate_step": (20, None)}
    assert ledger.differences("images/m/other", NEW) == {}


def test_entry_is_never_replaced_by_entering_again(folder):
    entered(folder).enter(NAME, NEW)
    assert Provenance(folder)[NAME] == OLD


def test_clearing_deletes_the_files_and_lets_the_new_entry_in(folder):
    ledger = entered(folder)
    ledger.clear(NAME)
    assert folder.names("images") == []
    assert NAME not in Provenance(folder)
    ledger.enter(NAME, NEW)
    assert Provenance(folder)[NAME] == NEW


@pytest.mark.parametrize("moment", ["before the null", "after the null", "all deleted"])
def test_clearing_that_was_killed_goes_on(folder, monkeypatch, moment):
    class Killed(Exception):
        pass

    def die(*_):
        raise Killed

    ledger = entered(folder)
    if moment == "before the null":
        monkeypatch.setattr(Folder, "write", die)
    elif moment == "after the null":
        monkeypatch.setattr(Folder, "delete_all", die)
    try:
        ledger.clear(NAME)
    except Killed:
        monkeypatch.undo()
    again = Provenance(folder)
    if moment == "before the null":
        assert again[NAME] == OLD  # as if nothing had been asked
        return
    again.finish_clearing()
    again.enter(NAME, NEW)
    assert Provenance(folder)[NAME] == NEW
    assert folder.names("images") == []


def test_another_drivers_change_is_seen(folder):
    ledger = entered(folder)
    assert ledger.is_current()
    Provenance(folder).enter("images/m/b", NEW)
    assert not ledger.is_current()


@pytest.mark.parametrize("content", ["{", json.dumps({"folders": {}}), json.dumps([])])
def test_ledger_that_cannot_be_used_is_one_line(folder, content):
    folder.write(layout.LEDGER, content)
    with pytest.raises(UserError) as caught:
        Provenance(folder)
    assert "\n" not in str(caught.value)
