"""Kept answers: what they are kept under, and when they go."""

from __future__ import annotations

import time

import pytest

from aiplatform import answer_cache

MODEL = {"modelfile": "FROM /blobs/sha256-aa\n", "parameters": "num_ctx 2048", "template": "t", "system": ""}
REQUEST = {"prompt": "hi", "system": "s", "options": {"temperature": 0}, "format": "json"}


@pytest.mark.parametrize(
    ("options", "deterministic"),
    [
        (None, False),
        ({}, False),
        ({"temperature": 0}, True),
        ({"temperature": 0.0}, True),
        ({"temperature": 0.7}, False),
        ({"temperature": 0.7, "seed": 0}, True),
        ({"seed": None}, False),
        ({"seed": -1}, False),
        ({"temperature": 0, "seed": -1}, True),
    ],
)
def test_only_what_would_come_again_is_kept(options, deterministic):
    assert answer_cache.is_deterministic(options) is deterministic


@pytest.mark.parametrize(
    ("model", "request_"),
    [
        ({"modelfile": "FROM /blobs/sha256-bb\n"}, {}),
        ({"parameters": "num_ctx 4096"}, {}),
        ({"template": "u"}, {}),
        ({"system": "other"}, {}),
        ({}, {"prompt": "hello"}),
        ({}, {"system": "t"}),
        ({}, {"options": {"temperature": 0, "top_k": 1}}),
        ({}, {"format": {"type": "object"}}),
        ({}, {"messages": []}),
    ],
)
def test_each_part_of_model_and_request_tells_answers_apart(model, request_):
    assert answer_cache.key(MODEL | model, REQUEST | request_) != answer_cache.key(MODEL, REQUEST)


def test_what_does_not_change_an_answer_does_not_tell_them_apart():
    base = answer_cache.key(MODEL, REQUEST)
    assert answer_cache.key(MODEL, REQUEST | {"stream": True, "keep_alive": -1, "model": "alias"}) == base
    assert answer_cache.key(MODEL | {"modelfile": "# FROM alias\n" + MODEL["modelfile"].strip()}, REQUEST) == base
    two = MODEL | {"modelfile": "FROM /blobs/sha256-aa\nPARAMETER a 1\nPARAMETER b 2", "parameters": "a 1\nb 2"}
    other = MODEL | {"modelfile": "FROM /blobs/sha256-aa\nPARAMETER b 2\nPARAMETER a 1", "parameters": "b 2\na 1"}
    assert answer_cache.key(two, REQUEST) == answer_cache.key(other, REQUEST)


def test_the_least_recently_used_goes_first():
    cache = answer_cache.AnswerCache[int](size=2)
    cache.put("a", 1)
    cache.put("b", 2)
    assert cache.get("a") == 1
    cache.put("c", 3)
    assert (cache.get("a"), cache.get("b"), cache.get("c"), len(cache)) == (1, None, 3, 2)


def test_an_old_answer_goes():
    cache = answer_cache.AnswerCache[int](seconds=0.05)
    cache.put("a", 1)
    assert cache.get("a") == 1
    time.sleep(0.1)
    assert cache.get("a") is None


def test_fifty_answers_for_an_hour():
    cache = answer_cache.AnswerCache[int]()
    for number in range(60):
        cache.put(str(number), number)
    assert len(cache) == 50
    assert answer_cache.AGE_SECONDS == 3600
