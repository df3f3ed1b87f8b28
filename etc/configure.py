"""Write the paths of this checkout into Salt's configuration.

Salt's daemons change to ``/``, so every path in their configuration must be absolute; the rest of the
configuration is static and in git. The generated files are ``etc/{master,minion,masterless}/*.d/paths.conf``.

Usage: ``etc/configure.py [--root-dir DIR] [--pillar DIR ...]``
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
FRAGMENTS = {
    "master": "etc/master/master.d/paths.conf",
    "minion": "etc/minion/minion.d/paths.conf",
    "masterless": "etc/masterless/minion.d/paths.conf",
}


def run_paths(root: Path, role: str) -> dict[str, str]:
    """Where a daemon of ``role`` keeps its keys, cache, sockets and log under ``root``."""
    if root == Path("/"):
        return {}
    base = root / role
    return {
        "root_dir": str(base),
        "pki_dir": "/pki",
        "cachedir": "/cache",
        "sock_dir": "/sock",
        "pidfile": "/salt.pid",
        "log_file": "/salt.log",
        "extension_modules": "/cache/extmods",
    }


def python_dirs(checkout: Path, *names: str) -> dict[str, list[str]]:
    """The loader options that point at this checkout's Python folders."""
    folders = {
        "module_dirs": "_modules",
        "states_dirs": "_states",
        "utils_dirs": "_utils",
        "beacons_dirs": "_beacons",
        "runner_dirs": "_runners",
        "pillar_dirs": "_pillar",
        "outputter_dirs": "_output",
    }
    return {name: [str(checkout / folders[name])] for name in names}


def fragments(checkout: Path, root: Path, pillar: list[Path]) -> dict[str, dict[str, object]]:
    """Return each role's options.

    Args:
        checkout: this repository's root.
        root: ``/`` for a host's own daemons, else a folder that holds all they write.
        pillar: the pillar roots, first found wins.
    """
    tree: dict[str, object] = {
        "file_roots": {"base": [str(checkout / "salt")]},
        "pillar_roots": {"base": [str(path) for path in pillar]},
        "ext_pillar": [{"ai_platform": {"formulas": str(checkout / "salt")}}],
    }
    # The orchestration is a state run on the master: it has modules and states of its own.
    compile_here = python_dirs(checkout, "module_dirs", "states_dirs", "utils_dirs", "pillar_dirs")
    local = python_dirs(checkout, "module_dirs", "states_dirs", "utils_dirs", "beacons_dirs", "pillar_dirs")
    return {
        "master": run_paths(root, "master")
        | tree
        | compile_here
        | python_dirs(checkout, "runner_dirs", "outputter_dirs"),
        "minion": dict(run_paths(root, "minion")),
        "masterless": run_paths(root, "masterless") | tree | local,
    }


def main() -> None:
    """Write the fragments."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--root-dir", type=Path, default=Path("/"), help="what the daemons write goes below this folder"
    )
    parser.add_argument("--pillar", type=Path, action="append", help="a pillar root before this checkout's own")
    args = parser.parse_args()
    root = args.root_dir if args.root_dir == Path("/") else CHECKOUT / args.root_dir
    pillar = [path.resolve() for path in args.pillar or []] + [CHECKOUT / "pillar"]
    for role, options in fragments(CHECKOUT, root, pillar).items():
        path = CHECKOUT / FRAGMENTS[role]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("# Written by etc/configure.py for this checkout.\n" + json.dumps(options, indent=2) + "\n")
        if root != Path("/"):
            # salt-run needs its job folder; on a host the master's start makes it.
            (root / role / "cache" / "proc").mkdir(parents=True, exist_ok=True)


if __name__ == "__main__":
    main()
