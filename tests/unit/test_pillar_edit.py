"""The pillar file that names a rotating slot's model: found, edited with its comments, replaced in one step."""

from __future__ import annotations

import pytest
import yaml

from aiplatform import pillar_edit
from aiplatform.errors import PlatformError

TEXT = """\
# Ours.
slots:
  5: {model: null}   # the general one
  # Do not touch without asking Kim.
  6: {model: 'mine:7b', force: true}
aliases:
  writer: {slot: 5, system: "Be \\"kind\\"."}
  long:
    system: >-
      A text over
      two lines.
"""


def words(text: str) -> list[list[str]]:
    """The words of each line: a comment may move a column."""
    return [line.split() for line in text.splitlines()]


def test_only_the_line_of_the_slot_changes():
    changed = pillar_edit.slot_model(TEXT, 5, "mistral:7b", force=False)
    assert words(changed) == words(TEXT.replace("5: {model: null}", "5: {model: mistral:7b}"))
    assert words(pillar_edit.slot_model(changed, 5, None, force=False)) == words(TEXT)


def test_force_is_written_and_taken_away():
    changed = pillar_edit.slot_model(TEXT, 6, None, force=False)
    assert yaml.safe_load(changed)["slots"][6] == {"model": None}
    changed = pillar_edit.slot_model(changed, 6, "chatty:7b", force=True)
    assert yaml.safe_load(changed)["slots"][6] == {"model": "chatty:7b", "force": True}
    assert "Kim" in changed


@pytest.mark.parametrize(
    ("text", "slots"),
    [
        ("slots:\n  '5': {model: a:1}\n", {"5": {"model": "b:1"}}),
        ("slots:\n  6: {model: a:1}\n", {5: {"model": "b:1"}, 6: {"model": "a:1"}}),
        ("slots:\n  5:\n  6:\n    model: a:1\n", {5: {"model": "b:1"}, 6: {"model": "a:1"}}),
        ("slots: {5: {instance: node1}}\n", {5: {"instance": "node1", "model": "b:1"}}),
    ],
)
def test_other_ways_to_write_it(text, slots):
    assert yaml.safe_load(pillar_edit.slot_model(text, 5, "b:1", force=False))["slots"] == slots


@pytest.mark.parametrize("text", ["slots: 5\n", "a: b\n", "{% set x = 1 %}\nslots:\n  5: {model: {{ x }} }\n", ""])
def test_what_cannot_be_edited_is_said(text):
    with pytest.raises(PlatformError, match="by hand"):
        pillar_edit.slot_model(text, 5, "b:1", force=False)


def test_the_file_that_salt_reads_is_found(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for root, text in ((first, "slots:\n  5: {model: null}\n"), (second, "slots:\n  5: {model: a:1}\n")):
        root.mkdir()
        (root / "slots.sls").write_text(text)
    roots = [str(first), str(second)]
    assert pillar_edit.find(roots, 5) == first / "slots.sls"
    assert pillar_edit.find(roots, 6) == first / "slots.sls"
    (second / "more.sls").write_text("slots:\n  5: {model: a:1}\n")
    with pytest.raises(PlatformError, match=r"more\.sls"):
        pillar_edit.find(roots, 5)
    with pytest.raises(PlatformError, match="none"):
        pillar_edit.find([str(tmp_path / "nowhere")], 5)


def test_a_file_is_replaced_whole_with_its_mode(tmp_path, monkeypatch):
    path = tmp_path / "slots.sls"
    path.write_text(TEXT)
    path.chmod(0o640)
    pillar_edit.write(path, "slots: {}\n")
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("slots: {}\n", 0o640)
    monkeypatch.setattr(
        pillar_edit.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(PlatformError, match=rf"{path}; actual: No space left on device"):
        pillar_edit.write(path, "half")
    assert path.read_text() == "slots: {}\n"
    assert [one.name for one in tmp_path.iterdir()] == ["slots.sls"]


def test_a_pillar_that_cannot_be_written_is_said(tmp_path, monkeypatch):
    path = tmp_path / "slots.sls"
    path.write_text(TEXT)

    def read_only(**_):
        raise OSError(30, "Read-only file system", str(tmp_path))

    monkeypatch.setattr(pillar_edit.tempfile, "mkstemp", read_only)
    with pytest.raises(PlatformError, match=rf"{path}; actual: Read-only file system; next: has its disk room"):
        pillar_edit.write(path, "slots: {}\n")
    assert path.read_text() == TEXT
