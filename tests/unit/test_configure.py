"""The generated paths of Salt's configuration."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT

SPEC = importlib.util.spec_from_file_location("configure", CHECKOUT / "etc/configure.py")
configure = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(configure)


@pytest.fixture
def fragments():
    return configure.fragments(
        Path("/srv/ai-platform"), Path("/"), [Path("/srv/pillar"), Path("/srv/ai-platform/pillar")]
    )


def paths_in(options):
    for value in options.values():
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            yield from paths_in(value)
        elif isinstance(value, list):
            for item in value:
                yield from paths_in(item) if isinstance(item, dict) else [item]


def test_every_path_is_absolute(fragments):
    found = [path for options in fragments.values() for path in paths_in(options)]
    assert found
    assert all(path.startswith("/") for path in found)


def test_only_the_state_tree_is_served(fragments):
    for role in ("master", "masterless"):
        assert fragments[role]["file_roots"] == {"base": ["/srv/ai-platform/salt"]}


def test_a_site_folder_comes_before_the_checkouts_pillar(fragments):
    assert fragments["master"]["pillar_roots"]["base"] == ["/srv/pillar", "/srv/ai-platform/pillar"]


def test_a_minion_gets_no_tree_of_its_own(fragments):
    assert fragments["minion"] == {}


def test_in_a_checkout_all_that_is_written_goes_below_one_folder():
    options = configure.fragments(Path("/c"), Path("/c/.run"), [Path("/c/pillar")])
    for role in ("master", "minion", "masterless"):
        assert options[role]["root_dir"] == f"/c/.run/{role}"
