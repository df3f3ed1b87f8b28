"""The page of requirements names every item, and every file and test that it names is there."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

PAGE = CHECKOUT / "docs/requirements.md"
# How many items each part of the list has; they are numbered from 1.
ITEMS = {
    "HOST": 4,
    "VAR": 6,
    "URL": 1,
    "PORT": 1,
    "PATH": 1,
    "PH": 7,
    "PRE": 9,
    "VLT": 16,
    "DOC": 4,
    "OLL": 9,
    "NUM": 7,
    "SGL": 11,
    "CON": 21,
    "LOC": 9,
    "TRB": 14,
    "BEN": 20,
    "SEL": 14,
    "SLT": 6,
    "WRM": 5,
    "ROT": 4,
    "KEY": 10,
    "QDR": 4,
    "OWU": 9,
    "OCL": 7,
    "NGX": 6,
    "DNS": 4,
    "OID": 4,
    "LIB": 16,
    "TST": 5,
    "OPS": 4,
    "VER": 13,
    "SEC": 9,
    "TAG": 5,
    "DEF": 42,
}
STATES = ("done", "other way", "in part", "no test", "nothing to build")
COLUMNS = 4


def rows(text: str) -> dict[str, list[str]]:
    """The cells of each row of the tables, by item."""
    lines = [line.strip().strip("|").split(" | ") for line in text.splitlines() if re.match(r"\| [A-Z]+-\w+ ", line)]
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines}


def named(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def missing_files(cell: str) -> list[str]:
    """The files that a cell names and that this checkout has not got."""
    return [name for name in named(cell) if not (CHECKOUT / name).exists()]


@functools.cache
def functions(path: Path) -> set[str]:
    """The names of the functions in a file of Python; none where it is no such file."""
    if not (path.is_file() and path.suffix == ".py"):
        return set()
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}


def missing_tests(cell: str) -> list[str]:
    """The tests that a cell names, ``<file below tests/>::<function>``, and that are not there."""
    found = []
    for name in named(cell):
        file, _, function = name.partition("::")
        if function not in functions(CHECKOUT / "tests" / file):
            found.append(name)
    return found


@pytest.fixture(scope="module")
def table():
    return rows(PAGE.read_text())


def test_no_item_is_left_out(table):
    wanted = {f"{part}-{number}" for part, most in ITEMS.items() for number in range(1, most + 1)} | {"PRE-REQ"}
    assert set(table) == wanted
    assert {item: len(cells) for item, cells in table.items() if len(cells) != COLUMNS} == {}


def test_every_item_has_a_state(table):
    assert [item for item, cells in table.items() if not cells[1].startswith(STATES)] == []


def test_every_file_is_there(table):
    assert {item: names for item, cells in table.items() if (names := missing_files(cells[2]))} == {}


def test_every_test_is_there(table):
    assert {item: names for item, cells in table.items() if (names := missing_tests(cells[3]))} == {}


def test_what_is_done_has_a_test(table):
    done = {item: cells for item, cells in table.items() if cells[1].startswith(("done", "other way", "in part"))}
    assert [item for item, cells in done.items() if not named(cells[2]) or not named(cells[3])] == []


def test_the_readme_leads_to_every_page():
    linked = re.findall(r"\]\((docs/[\w-]+\.md)\)", (CHECKOUT / "README.md").read_text())
    assert {f"docs/{page.name}" for page in (CHECKOUT / "docs").glob("*.md")} - set(linked) == set()


def test_what_is_not_there_is_found():
    assert missing_files("`salt/vault/init.sls`, `salt/vault/gone.sls`") == ["salt/vault/gone.sls"]
    here = "unit/test_requirements_page.py"
    cell = f"`{here}::test_no_item_is_left_out`, `{here}::test_gone`, `unit/test_gone.py::test_a`, `unit`"
    assert missing_tests(cell) == [f"{here}::test_gone", "unit/test_gone.py::test_a", "unit"]
