"""Tables for people, data for programs."""

from __future__ import annotations

from aiplatform import tables


def test_columns_are_as_wide_as_what_they_hold():
    assert tables.table(["a", "b"], [("long value", 1), ("x", 22)]).splitlines() == [
        "a           b",
        "----------  --",
        "long value  1",
        "x           22",
    ]
    assert tables.table(["a"], []) == ""


def test_a_person_sees_the_text_once(capsys):
    answer = tables.answer({"fun": "ai_platform.status"}, {"retcode": 1}, "a table\n")
    assert capsys.readouterr().out == "a table\n"
    assert answer == {"outputter": "quiet", "data": {"retcode": 1}}


def test_a_program_gets_nothing_but_data(capsys):
    assert tables.answer({"fun": "x", "output": "json"}, {"retcode": 1}, "a table") == {"retcode": 1}
    assert tables.answer({}, {"retcode": 1}, "a table") == {"retcode": 1}
    assert capsys.readouterr().out == ""


def test_a_runner_inside_another_stays_silent(capsys):
    with tables.silent():
        assert tables.answer({"fun": "x"}, {"retcode": 0}, "a table") == {"retcode": 0}
    assert capsys.readouterr().out == ""
    tables.answer({"fun": "x"}, {"retcode": 0}, "a table")
    assert capsys.readouterr().out
