"""Make Salt's Python environment, /opt/salt, from the locked packages, with nothing but the system's Python.

It is the one that the formula salt_minion makes on a minion, and is left alone by it.

Usage: ``etc/environment.py [--wheelhouse URL-OR-FOLDER] [--path /opt/salt]``
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(CHECKOUT / "_utils"))

from aiplatform import venv  # noqa: E402 (found by the line above)

# As salt/salt_minion/defaults.yaml has them, which only Salt's own Python can read.
PYTHON = "python3"
WITHOUT = ["timelib"]
BUILD = ["salt"]


def lock() -> str:
    """Return the locked packages."""
    return venv.select((CHECKOUT / "requirements/salt.txt").read_text(), without=WITHOUT)


def pip(folder: Path, packages: str, wheelhouse: str, *, build: bool = False) -> None:
    """Install locked packages into an environment."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(packages)
        file.flush()
        words = venv.pip_arguments(file.name, wheelhouse, build)
        subprocess.run([str(folder / "bin/python"), "-m", "pip", *words], check=True)


def make(path: Path, wheelhouse: str) -> bool:
    """Make the environment beside ``path`` and point that at it; returns whether there was anything to do.

    Raises:
        subprocess.CalledProcessError: pip failed, and has said why.
    """
    packages = lock()
    digest = venv.digest(packages, PYTHON)
    folder = path.with_name(f"{path.name}-{digest[:12]}")
    stamp = folder / venv.STAMP
    if path.resolve() == folder and stamp.is_file() and (folder / "bin/python").exists():
        return False
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([PYTHON, "-m", "venv", str(folder)], check=True)
    pip(folder, venv.select(packages, without=BUILD), wheelhouse)
    pip(folder, venv.select(packages, only=BUILD), wheelhouse, build=True)
    # Written last: a folder without it was interrupted, and is made anew.
    stamp.write_text(f"{digest}\n")
    link = path.with_name(f"{path.name}.new")
    link.unlink(missing_ok=True)
    link.symlink_to(folder.name)
    link.replace(path)
    return True


def main() -> None:
    """Make it where it is not there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--wheelhouse", default="", help="URL or folder with the packages")
    parser.add_argument("--path", type=Path, default=Path("/opt/salt"))
    args = parser.parse_args()
    try:
        made = make(args.path, args.wheelhouse)
    except subprocess.CalledProcessError as err:
        sys.exit(f"Salt's environment could not be made; the reason is above ({err.cmd[0]}: exit {err.returncode}).")
    print(f"{args.path}: {'made' if made else 'as it should be'}")


if __name__ == "__main__":
    main()
