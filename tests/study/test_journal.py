"""Journals survive being cut off at any byte; records hold no number that JSON does not know."""

import json
import math

from hypothesis import given
from hypothesis import strategies as st

from latephase.records.files import Journal, read_journal, read_json, write_json


def write_attempt(path, rows):
    journal = Journal(path)
    for row in rows:
        journal.write("row", **row)
    journal.close()
    return journal.attempt


def test_rows_of_the_last_attempt_count(tmp_path):
    path = tmp_path / "folder" / "rows.jsonl"
    assert write_attempt(path, [{"x": 1}, {"x": 2}]) == 1
    assert write_attempt(path, [{"x": 3}]) == 2
    assert read_journal(path) == [{"event": "row", "x": 3}]
    assert len(path.read_text(encoding="utf-8").splitlines()) == 5  # nothing that was written is gone


@given(cut=st.integers(min_value=0, max_value=200))
def test_a_journal_that_was_cut_off_anywhere_reads_and_goes_on(tmp_path_factory, cut):
    path = tmp_path_factory.mktemp("cut") / "rows.jsonl"
    write_attempt(path, [{"x": i, "text": "é\n"} for i in range(4)])
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    kept = read_journal(path)
    assert kept == [{"event": "row", "x": i, "text": "é\n"} for i in range(len(kept))]
    write_attempt(path, [{"x": 9}])
    assert read_journal(path) == [{"event": "row", "x": 9}]
    for line in path.read_text(encoding="utf-8").splitlines():
        json.loads(line)


def test_numbers_that_are_not_finite_become_null(tmp_path):
    table = {"a": math.inf, "b": [math.nan, 1.0], "c": {"d": -math.inf}, "e": (0.5,)}
    write_json(tmp_path / "record.json", table)
    assert read_json(tmp_path / "record.json") == {"a": None, "b": [None, 1.0], "c": {"d": None}, "e": [0.5]}
    write_attempt(tmp_path / "rows.jsonl", [table])
    assert read_journal(tmp_path / "rows.jsonl")[0]["c"] == {"d": None}
