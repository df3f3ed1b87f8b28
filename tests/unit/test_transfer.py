"""Models on their way, several at once."""

from __future__ import annotations

import threading
from contextvars import ContextVar

import pytest

from aiplatform import transfer

MODELS = ["a:1", "b:1", *(f"c:{number}" for number in range(40))]


def test_models_come_side_by_side():
    met = threading.Barrier(transfer.TRANSFERS, timeout=20)
    done = []

    def do(model):
        if len(done) < transfer.TRANSFERS:
            met.wait()  # breaks where nobody else comes
        done.append(model)

    transfer.side_by_side(do, MODELS[: transfer.TRANSFERS])
    assert sorted(done) == ["a:1", "b:1"]


def test_after_one_that_fails_the_one_beside_it_ends_and_no_other_begins():
    begun, ended, failing = [], [], threading.Event()
    both = threading.Barrier(transfer.TRANSFERS, timeout=20)

    def do(model):
        begun.append(model)
        if model in MODELS[: transfer.TRANSFERS]:
            both.wait()
        if model == "a:1":
            failing.set()
            raise ValueError(model)
        failing.wait(20)
        threading.Event().wait(0.2)  # as long as a moment is
        ended.append(model)

    with pytest.raises(ValueError, match="a:1"):
        transfer.side_by_side(do, MODELS)
    assert "b:1" in ended
    assert sorted(begun) == sorted([*ended, "a:1"])
    assert len(begun) <= transfer.TRANSFERS + 1, "one may have begun in the moment in which the first failed"


def test_what_salt_keeps_by_context_is_there():
    settings: ContextVar[str] = ContextVar("settings")
    settings.set("pillar")
    found = []
    transfer.side_by_side(lambda _: found.append(settings.get()), ["a:1"])
    assert found == ["pillar"]
