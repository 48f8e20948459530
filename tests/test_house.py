"""make house counts what it says: on a source tree of a few lines, where everybody can count."""

import pytest

from tests import house

SOURCE = '''"""A module."""

import os


def short():
    """With a docstring."""
    # and a comment
    return 1


class Room:
    def door(self):

        return self

    def _hidden(self):
        return os

    class Meta:
        ordering = []
'''
BLOCK = "".join(f"    step_{number}()\n" for number in range(7))


@pytest.fixture
def tree(tmp_path):
    for folder in ("volmig", "hosts", "jobs", "tests"):
        (tmp_path / folder).mkdir()
    (tmp_path / "jobs/room.py").write_text(SOURCE)
    (tmp_path / "hosts/one.py").write_text("def one():\n" + BLOCK)
    (tmp_path / "hosts/two.py").write_text("def two():\n    other()\n" + BLOCK)
    (tmp_path / "tests/test_it.py").write_text(
        "def test_a(monkeypatch):\n    monkeypatch.setattr(os, 'x', 1)\n\n\ndef test_b(form):\n    form.setattr('y')\n"
    )
    return tmp_path


def test_lengths_are_lines_of_code_without_docstring_comment_and_blank_line(tree):
    lengths = {each.place.rpartition(" ")[2]: each.lines for each in house.functions(house.files("jobs", root=tree))}
    assert lengths == {"short": 2, "door": 2, "_hidden": 2}


def test_what_is_public_and_has_no_docstring_is_counted_by_file(tree):
    assert house.undocumented(house.files("jobs", root=tree)) == (3, {"jobs/room.py": 2})


def test_a_repeated_block_is_found_once_with_all_its_lines_and_places(tree):
    [(length, first, where)] = house.repeats(house.files("hosts", root=tree))
    assert (length, first) == (7, "step_0()")
    assert where == ["hosts/one.py:2", "hosts/two.py:3"]


def test_only_what_replaces_something_counts_as_a_patch(tree):
    assert house.patches(house.files("tests", root=tree)) == (2, 1)


def test_the_report_has_every_figure(tree):
    text = "\n".join(house.report(tree))
    for words in ("median", "90 % up to", "Modules of more than", "20 % of 5", "0.50 (1 in 2)", "in several places: 1"):
        assert words in text
