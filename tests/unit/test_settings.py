"""Defaults under the operator's pillar."""

from __future__ import annotations

import json

import pytest

from aiplatform import settings
from aiplatform.errors import PlatformError


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/defaults.yaml").write_text(
        "shop:\n  port: 80\n  owner: {name: a, age: 1}\n"
        "  shelves:\n    1: {size: 3}\n    2: {size: 4}\n  tags: [x, y]\n"
    )
    (tmp_path / "shop/schema.yaml").write_text(
        "$defs:\n  size: {type: integer}\n"
        "properties:\n  shop:\n    type: object\n    properties:\n      port: {type: integer}\n"
        "      owner: {type: object, properties: {name: {type: string}, age: {type: integer}}}\n"
        "      shelves:\n        additionalProperties:\n          properties:\n"
        "            size: {$ref: '#/$defs/size'}\n            colour: {default: white}\n"
    )
    return tmp_path


def test_what_the_operator_leaves_out_comes_from_the_defaults(tree):
    assert settings.effective({}, tree)["shop"]["owner"] == {"name": "a", "age": 1}


def test_the_operator_wins_key_by_key_and_list_by_list(tree):
    merged = settings.effective({"shop": {"owner": {"age": 2}, "tags": ["z"]}}, tree)["shop"]
    assert merged["owner"] == {"name": "a", "age": 2}
    assert merged["tags"] == ["z"]
    assert merged["port"] == 80


def test_null_removes_an_entry_that_the_operator_may_name(tree):
    assert settings.effective({"shop": {"shelves": {2: None}}}, tree)["shop"]["shelves"] == {1: {"size": 3}}


def test_null_over_a_fixed_mapping_leaves_the_defaults(tree):
    assert settings.effective({"shop": {"owner": None}}, tree)["shop"]["owner"] == {"name": "a", "age": 1}
    assert settings.effective({"shop": None}, tree)["shop"]["port"] == 80


def test_a_new_entry_gets_the_defaults_of_its_schema(tree):
    shelves = settings.effective({"shop": {"shelves": {3: {"size": 9}}}}, tree)["shop"]["shelves"]
    assert shelves[3] == {"size": 9, "colour": "white"}


def test_merging_changes_neither_side(tree):
    written = {"shop": {"owner": {"age": 2}}}
    settings.effective(written, tree)["shop"]["owner"]["age"] = 3
    assert written == {"shop": {"owner": {"age": 2}}}
    assert settings.effective({}, tree)["shop"]["owner"]["age"] == 1


def test_two_formulas_must_agree_on_a_default(tree):
    (tree / "zoo").mkdir()
    (tree / "zoo/defaults.yaml").write_text("shop: {port: 81}\n")
    with pytest.raises(PlatformError, match=r"shop\.port.*zoo.*expected: 80; actual: 81"):
        settings.defaults(tree)


def test_a_changed_file_is_read_again(tree):
    settings.defaults(tree)
    path = tree / "shop/defaults.yaml"
    path.write_text("shop: {port: 8080}\n")
    assert settings.defaults(tree)["shop"]["port"] == 8080


def test_the_selection_of_the_first_pillar_root_counts(tmp_path):
    roots = [tmp_path / name for name in ("site", "checkout")]
    for root in roots:
        root.mkdir()
    assert settings.selection([str(root) for root in roots]) == {}
    (roots[1] / "model_selection.json").write_text(json.dumps({"slot1_general": "b:1"}))
    assert settings.selection([str(root) for root in roots])["slot1_general"] == "b:1"
    (roots[0] / "model_selection.json").write_text(json.dumps({"slot1_general": "a:1"}))
    assert settings.selection([str(root) for root in roots])["slot1_general"] == "a:1"


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_selection_is_named(tmp_path, content):
    (tmp_path / "model_selection.json").write_text(content)
    with pytest.raises(PlatformError, match=r"model_selection\.json.*next: restore it"):
        settings.selection([str(tmp_path)])
