"""Salt's environment made with the system's Python alone: the very one that the formula makes."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from aiplatform import venv
from tests.conftest import CHECKOUT

SPEC = importlib.util.spec_from_file_location("environment", CHECKOUT / "etc/environment.py")
environment = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(environment)


@pytest.fixture
def calls(monkeypatch):
    """The commands that would run; ``venv`` makes the interpreter's place."""
    found = []

    def run(words, check):
        found.append(words)
        if words[1:3] == ["-m", "venv"]:
            python = Path(words[3]) / "bin/python"
            python.parent.mkdir(parents=True)
            python.touch()
        if fail and fail[0] in words:
            raise subprocess.CalledProcessError(1, words)

    fail: list[str] = []
    monkeypatch.setattr(environment.subprocess, "run", run)
    return found, fail


def test_it_leaves_out_and_builds_what_the_formula_does():
    defaults = yaml.safe_load((CHECKOUT / "salt/salt_minion/defaults.yaml").read_text())["salt_minion"]
    assert defaults["without"] == environment.WITHOUT
    assert defaults["build"] == environment.BUILD
    assert defaults["python"]["Debian"] == environment.PYTHON


def test_the_systems_python_needs_nothing_installed():
    words = [sys.executable, "-I", "-S", "-B", str(CHECKOUT / "etc/environment.py"), "--help"]
    assert subprocess.run(words, capture_output=True, check=True)


def test_it_is_made_once_where_the_formula_looks_for_it(calls, tmp_path):
    path = tmp_path / "salt"
    assert environment.make(path, "http://192.0.2.10:8000/wheels/")
    digest = venv.digest(venv.select((CHECKOUT / "requirements/salt.txt").read_text(), ["timelib"]), "python3")
    assert path.readlink().name == f"salt-{digest[:12]}"
    assert (path / venv.STAMP).read_text().strip() == digest
    pips = [words for words in calls[0] if "pip" in words]
    assert ["--no-binary=:all:" in words for words in pips] == [False, True]
    assert all("--require-hashes" in words and "--no-index" in words for words in pips)
    calls[0].clear()
    assert not environment.make(path, "")
    assert calls[0] == []


def test_an_interrupted_one_is_made_anew(calls, tmp_path):
    calls[1].append("--no-binary=:all:")
    with pytest.raises(subprocess.CalledProcessError):
        environment.make(tmp_path / "salt", "")
    assert not (tmp_path / "salt").is_symlink()
    calls[1].clear()
    assert environment.make(tmp_path / "salt", "")
