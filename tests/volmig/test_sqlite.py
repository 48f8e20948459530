"""SQLite's files are read by their paths, whatever characters those have."""

import contextlib
import sqlite3

import pytest

from volmig import sqlite


@pytest.mark.parametrize("name", ["plain", "data #1", "50%", "what?", "a%20b", "a&mode=rwc"])
def test_a_file_is_read_by_its_path_and_not_written(name, tmp_path):
    path = tmp_path / name
    with contextlib.closing(sqlite3.connect(path)) as writer:
        writer.execute("CREATE TABLE one AS SELECT 7 AS number")
        writer.commit()
    with contextlib.closing(sqlite.read_only(path)) as reader:
        assert reader.execute("SELECT number FROM one").fetchone() == (7,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            reader.execute("DELETE FROM one")


def test_a_file_that_is_not_there_is_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(sqlite3.OperationalError):
        sqlite.read_only("none?mode=rwc")
    assert list(tmp_path.iterdir()) == []
