import json

import pytest

from latephase.records.files import read_journal, read_json, read_or_set_aside, write_text_atomic


def test_journal_has_the_rows_of_the_last_attempt(tmp_path):
    rows = [{"event": "start", "attempt": 1}, {"a": 1}, {"event": "start", "attempt": 2}, {"a": 2}, {"a": 3}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_journal(tmp_path / "rows.jsonl") == [{"a": 2}, {"a": 3}]


def test_journal_skips_a_torn_last_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"event": "start"}\n{"a": 1}\n{"a": "\xe9')
    assert read_journal(tmp_path / "rows.jsonl") == [{"a": 1}]


def test_journal_with_a_damaged_middle_is_an_error(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"event": "start"}\n{"a"\n{"b": 1}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_journal(tmp_path / "rows.jsonl")


def test_absent_files_are_empty(tmp_path):
    assert read_journal(tmp_path / "none.jsonl") == []
    assert read_json(tmp_path / "none.json") is None


def test_text_is_written_whole_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "new" / "file.txt"
    write_text_atomic(path, "old and long\n")
    write_text_atomic(path, "é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.txt"
    write_text_atomic(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomic(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", ['{"event": "start"}\n{"a"\n', '{"event": "start"}\n3\n', "\0\0\n"])
def test_a_whole_line_that_is_no_row_is_damage_even_at_the_end(tmp_path, content):
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"rows\.jsonl, line"):
        read_journal(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe{}"])
def test_a_damaged_record_is_named_and_may_be_set_aside(tmp_path, content):
    path = tmp_path / "status.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"status\.json is damaged"):
        read_json(path)
    assert read_or_set_aside(path) is None
    assert (tmp_path / "status.json.damaged").read_bytes() == content
    assert not path.exists()
