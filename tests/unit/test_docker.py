"""Who may use Docker: the people whom pillar names, beside those who may already."""

from __future__ import annotations

import pytest
import salt.config
import salt.modules.test
import salt.states.group
import yaml
from salt.utils.templates import JINJA

from tests.conftest import CHECKOUT


@pytest.fixture
def present(tmp_path):
    """Render the formula for these people; returns the arguments of the group's state."""

    def render(people):
        defaults = yaml.safe_load((CHECKOUT / "salt/docker/defaults.yaml").read_text())["docker"]
        opts = salt.config.minion_config(None) | {"cachedir": str(tmp_path), "file_client": "local"}
        context = {"pillar": {"docker": defaults | {"admin_users": people}}, "grains": {"os_family": "Debian"}}
        done = JINJA(str(CHECKOUT / "salt/docker/init.sls"), to_str=True, opts=opts, saltenv="base", **context)
        assert done["result"], done["data"]
        rows = yaml.safe_load(done["data"])["docker-group"]["group.present"]
        return {key: value for row in rows for key, value in row.items() if key != "require"}

    return render


@pytest.fixture
def host(monkeypatch):
    """Salt's own state on a host whose group has members; returns them."""
    members = ["somebody"]
    functions = {
        "group.info": lambda name: {"name": name, "gid": 990, "passwd": "x", "members": list(members)},
        "group.adduser": lambda name, user: members.append(user) or True,
        "group.deluser": lambda name, user: members.remove(user) or True,
        "group.members": lambda name, users: members.__setitem__(slice(None), users) or True,
        "test.ping": salt.modules.test.ping,
    }
    # The state forgets what Salt has read of the groups, by way of this function's module.
    monkeypatch.setattr(salt.modules.test, "__context__", {}, raising=False)
    monkeypatch.setattr(salt.states.group, "__salt__", functions, raising=False)
    monkeypatch.setattr(salt.states.group, "__opts__", {"test": False}, raising=False)
    monkeypatch.setattr(salt.states.group, "__grains__", {"kernel": "Linux"}, raising=False)
    return members


@pytest.mark.parametrize("people", [[], ["ada"], ["ada", "grace"]])
def test_people_whom_pillar_names_join_and_nobody_leaves(present, host, people):
    assert salt.states.group.present(**present(people))["result"] is True
    assert host == ["somebody", *people]
    again = salt.states.group.present(**present(people))
    assert (again["result"], again["changes"]) == (True, {})
