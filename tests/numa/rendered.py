"""What the platform's states put on an AI server of two NUMA nodes: the formulas' files, links, units."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import salt.config
import salt.state
from salt.utils.templates import JINJA

from aiplatform import numa, settings
from tests.conftest import CHECKOUT
from tests.unit.sysfs_trees import Server

HOST = "ai_server"
# The units of `ollama` do not start where the rules of `firewall` are not loaded.
FORMULAS = ["firewall", "ollama"]
# The virtual machine as the planner is told of it; a test compares that with what its kernel says.
SHAPE = Server(sockets=2, cores_per_node=2)
GRAINS = {
    "id": HOST,
    "kernel": "Linux",
    "os": "Debian",
    "os_family": "Debian",
    "osrelease": "12",
    "osmajorrelease": 12,
    "oscodename": "bookworm",
    "osarch": "amd64",
    "cpuarch": "x86_64",
    "init": "systemd",
    "systemd": {"version": "252", "features": ""},
    "virtual": "physical",
}
SPEC = importlib.util.spec_from_file_location("configure", CHECKOUT / "etc/configure.py")
assert SPEC
assert SPEC.loader
configure = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(configure)


@dataclass
class Tree:
    """Of a host: the files' text and mode, the links' targets, the enabled units, and the pillar of it all."""

    files: dict[str, tuple[str, str]] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    units: list[str] = field(default_factory=list)
    pillar: dict[str, Any] = field(default_factory=dict)


def render(scratch: Path) -> Tree:
    """Compile the formulas as a masterless minion does, with the default pillar, and fill in their files.

    :param scratch: a folder for Salt's own files and the described processors.
    """
    options = dict(salt.config.minion_config(None, role="minion"))
    options |= configure.fragments(CHECKOUT, scratch, [CHECKOUT / "pillar"])["masterless"]
    options |= {name: str(scratch / name) for name in ("pki_dir", "cachedir", "sock_dir", "extension_modules")}
    options |= {"root_dir": str(scratch), "file_client": "local", "id": HOST, "log_file": "/dev/null", "grains": GRAINS}
    pillar = settings.compile_pillar(options, HOST)
    assert "_errors" not in pillar, "\n".join(pillar["_errors"])
    high_state = salt.state.HighState(options | {"pillar": pillar}, initial_pillar=pillar)
    try:
        functions = high_state.state.functions
        host = numa.topology(SHAPE.build(scratch / "sysfs"))
        functions["numa.plan"] = lambda: {
            name: asdict(one) for name, one in numa.plan(host, pillar["ollama"]["instances"]).items()
        }
        high, errors = high_state.render_highstate({"base": FORMULAS})
        assert not errors, "\n".join(errors)
        low, errors = high_state.state.compile_high_data(*_resolved(high_state, high))
        assert not errors, "\n".join(errors)
        return _tree(low, {"opts": options, "salt": functions, "pillar": pillar, "grains": GRAINS, "saltenv": "base"})
    finally:
        high_state.destroy()


def _resolved(high_state: salt.state.HighState, high: dict[str, Any]) -> tuple[dict[str, Any]]:
    high, errors = high_state.state.reconcile_extend(high)
    errors += high_state.state.verify_high(high)
    assert not errors, "\n".join(errors)
    high, errors = high_state.state.requisite_in(high)
    assert not errors, "\n".join(errors)
    return (high,)


def _tree(low: list[dict[str, Any]], names: dict[str, Any]) -> Tree:
    tree = Tree(pillar=names["pillar"])
    for chunk in low:
        match f"{chunk['state']}.{chunk['fun']}":
            case "file.managed":
                tree.files[chunk["name"]] = (_text(chunk, names), str(chunk.get("mode", "0644")))
            case "file.symlink":
                tree.links[chunk["name"]] = chunk["target"]
            case "ollama.in_use":
                root = names["pillar"]["ollama"]["root"]
                tree.links[f"{root}/current"] = f"{root}/{chunk['name']}"
            case "service.running" | "service.enabled":
                tree.units.append(chunk["name"])
    return tree


def _text(chunk: dict[str, Any], names: dict[str, Any]) -> str:
    if "contents" in chunk:
        return str(chunk["contents"])
    source = CHECKOUT / "salt" / chunk["source"].removeprefix("salt://")
    if chunk.get("template") != "jinja":
        return source.read_text()
    done = JINJA(str(source), to_str=True, context=dict(_context(chunk)), **names)
    assert done["result"], f"{source}: {done['data']}"
    return str(done["data"])


def _context(chunk: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    given = chunk.get("context") or {}
    for row in given if isinstance(given, list) else [given]:
        yield from row.items()


def public_pillar(tree: Tree) -> str:
    """What the module `numa` reads of the pillar, as JSON."""
    return json.dumps({"ollama": tree.pillar["ollama"], "platform": tree.pillar["platform"]}, sort_keys=True)
