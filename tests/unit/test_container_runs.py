"""Containers: restarts of another day, and files that a dry run has not written."""

from __future__ import annotations

import pytest

from _modules import platform_container as module
from _states import platform_container as state
from aiplatform.errors import PlatformError
from tests.unit.test_containers import Host, apply, config, engine, existing

__all__ = ["apply", "engine"]


def test_only_restarts_during_the_wait_tell_of_a_crash_loop(engine):
    engine.logs.return_value = b"no such table\n"
    starting = existing(health="starting") | {"RestartCount": 5}
    engine.inspect_container.side_effect = [starting, existing(health="healthy") | {"RestartCount": 5}]
    assert module.wait_well("web", 1) is True
    engine.inspect_container.side_effect = [starting, starting | {"RestartCount": 8}]
    with pytest.raises(PlatformError, match=r"it was restarted 3 times, last exit code 1(?s:.*)no such table"):
        module.wait_well("web", 1)


@pytest.mark.parametrize(
    ("key", "row", "anew"),
    [
        ("file_|-web-rules_|-/etc/web/rules_|-managed", {"result": None, "changes": {"diff": "-a\n+b"}}, True),
        ("file_|-web-rules_|-/etc/web/rules_|-managed", {"result": None, "changes": {"newfile": "x"}}, True),
        ("platform_secret_|-web_|-/etc/web/secrets.env_|-file", {"result": None, "changes": {"diff": "<…>"}}, True),
        ("file_|-web-rules_|-/etc/web/rules_|-managed", {"result": None, "changes": {"mode": "0400"}}, False),
        ("file_|-web-rules_|-/etc/web/rules_|-managed", {"result": True, "changes": {}}, False),
        ("file_|-web-files_|-/etc/web_|-directory", {"result": None, "changes": {"/etc/web": {}}}, False),
        ("file_|-other_|-/etc/web2/rules_|-managed", {"result": None, "changes": {"diff": "-a\n+b"}}, False),
    ],
)
def test_a_dry_run_knows_of_the_files_that_another_state_would_write(apply, monkeypatch, key, row, anew):
    made = config(files="/etc/web")
    host = Host(existing(health="healthy") | {"Config": {"Labels": made["Labels"], "Image": made["Image"]}})
    monkeypatch.setattr(state, "__running__", {key: row}, raising=False)
    told = apply(host, test=True, files="/etc/web")
    assert told["changes"] == ({"files": {"old": "as before", "new": "changed"}} if anew else {})
    assert apply(host, files="/etc/web")["changes"] == {}
