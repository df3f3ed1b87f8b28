"""Where a volume is kept: what is there stays there, and another place is refused with how to move it."""

from __future__ import annotations

import re
from unittest.mock import Mock

import pytest

from _states import platform_container as state
from aiplatform import containers

OWN = {containers.NAME_LABEL: "models"}


@pytest.fixture(params=[True, False])
def apply(request, monkeypatch):
    """``apply(volume, device)``: the state of a volume that is there and its user's, dry and for real."""

    def run(volume, device):
        functions = {
            "platform_container.answers": lambda: True,
            "platform_volume.inspect": lambda name: {"Mountpoint": "/docker/models/_data"} | volume,
            "platform_volume.owner": lambda name: (21003, 21003),
            "platform_volume.create": Mock(side_effect=AssertionError("nothing is to be made")),
        }
        monkeypatch.setattr(state, "__salt__", functions, raising=False)
        monkeypatch.setattr(state, "__opts__", {"test": request.param}, raising=False)
        return state.volume_present("models", 21003, 21003, device)

    return run


@pytest.mark.parametrize(
    ("had", "wanted", "words"),
    [
        (None, "/mnt/new", r"actual: /docker/models/_data; .*cp -a /docker/models/_data/\. /mnt/new, docker volume rm"),
        (
            "/mnt/old",
            "/mnt/new",
            r"nothing is lost; where: models; expected: /mnt/new; actual: /mnt/old; next: name that",
        ),
        ("/mnt/old", None, r"expected: among Docker's own; actual: /mnt/old; next: name that place again, or another"),
    ],
)
def test_another_place_is_refused(apply, had, wanted, words):
    ret = apply({"Options": {"device": had} if had else None, "Labels": OWN}, wanted)
    assert (ret["result"], ret["changes"]) == (False, {})
    assert re.search(words, ret["comment"])


@pytest.mark.parametrize(
    ("volume", "wanted"),
    [
        ({"Options": None, "Labels": OWN}, None),
        ({"Options": {"device": "/mnt/old"}, "Labels": OWN}, "/mnt/old/"),
        # Made by hand: pillar names the volume, and need not say where it is.
        ({"Options": {"device": "/mnt/old"}, "Labels": None}, None),
        ({"Options": {"device": "/mnt/old"}}, "/mnt/old"),
    ],
)
def test_the_same_place_is_as_wanted(apply, volume, wanted):
    ret = apply(volume, wanted)
    assert (ret["result"], ret["changes"]) == (True, {})
