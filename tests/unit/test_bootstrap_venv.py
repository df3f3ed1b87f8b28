"""Salt's own environment: which locked packages, how they are installed, and the switch from one to the next."""

from __future__ import annotations

import stat
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest

from _modules import salt_venv as module
from _states import salt_venv as state
from aiplatform import venv
from aiplatform.errors import PlatformError

LOCK = """\
# made by a tool
alpha==1.0 \\
    --hash=sha256:aa \\
    --hash=sha256:ab
    # via beta
beta_x==2.0 ; python_version < '4' \\
    --hash=sha256:bb
"""


def test_entries_are_joined_and_comments_dropped():
    assert venv.select(LOCK) == (
        "alpha==1.0 --hash=sha256:aa --hash=sha256:ab\nbeta_x==2.0 ; python_version < '4' --hash=sha256:bb\n"
    )


def test_packages_are_left_out_and_chosen_by_any_spelling():
    assert venv.select(LOCK, without=["Beta-X"]).startswith("alpha")
    assert "beta" not in venv.select(LOCK, without=["Beta-X"])
    assert venv.select(LOCK, only=["beta.x"]).startswith("beta_x==2.0")
    assert venv.select(LOCK, without=["alpha"], only=["alpha"]) == ""


def test_a_package_with_a_version_for_each_python_keeps_both():
    lock = "one==1 ; python_full_version < '3.12' \\\n  --hash=sha256:a\none==2 ; python_full_version >= '3.12'\nB_b==1"
    assert venv.select(lock, without=["b-b"]).splitlines() == [
        "one==1 ; python_full_version < '3.12' --hash=sha256:a",
        "one==2 ; python_full_version >= '3.12'",
    ]
    assert venv.names(lock) == ["one", "b-b"]


def test_the_master_has_what_every_host_has_and_the_plots_besides(checkout):
    """Were a package of another version on the master, its environment would be another Salt than the hosts'."""
    every, master = ((checkout / f"requirements/{name}.txt").read_text() for name in ("salt", "master"))
    besides = venv.select(master, without=venv.names(every))
    assert set(venv.select(every).splitlines()) <= set(venv.select(master).splitlines())
    assert "matplotlib" in venv.names(besides)
    assert "salt" not in venv.names(besides)


def test_the_digest_follows_packages_and_python():
    assert venv.digest("a", "python3") == venv.digest("a", "python3")
    assert len({venv.digest(*pair) for pair in (("a", "python3"), ("b", "python3"), ("a", "python3.11"))}) == 3


def test_pip_never_compiles_and_always_checks_hashes():
    arguments = venv.pip_arguments("/lock")
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(arguments)
    assert not [argument for argument in arguments if "index" in argument]


def test_a_wheelhouse_replaces_the_index():
    arguments = venv.pip_arguments("/lock", "http://192.0.2.1:8000/wheels/", build=True)
    assert {"--no-index", "--find-links=http://192.0.2.1:8000/wheels/", "--trusted-host=192.0.2.1:8000"} <= set(
        arguments
    )
    assert {"--require-hashes", "--no-build-isolation", "--no-binary=:all:"} <= set(arguments)
    assert "--only-binary=:all:" not in arguments
    assert not [argument for argument in venv.pip_arguments("/lock", "/wheels") if "trusted" in argument]


@pytest.fixture
def python(tmp_path):
    """A stand-in for the interpreter: `-m venv DIR` makes DIR/bin/python a copy of it, `-m pip` writes a log."""
    path = tmp_path / "python"
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$2" = venv ]; then mkdir -p "$3/bin"; cp "$0" "$3/bin/python"; exit; fi\n'
        f'[ -e {tmp_path}/broken ] && {{ echo "no such package" >&2; exit 1; }}\n'
        f'echo "$@" >> {tmp_path}/pip.log\n'
    )
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.fixture
def lock(tmp_path, monkeypatch):
    path = tmp_path / "salt.txt"
    path.write_text(LOCK)
    monkeypatch.setattr(module, "__salt__", {"cp.cache_file": lambda url: url}, raising=False)
    return path


def test_install_switches_to_a_folder_of_its_own(tmp_path, python, lock):
    path = tmp_path / "opt" / "salt"
    path.parent.mkdir()
    digest = module.install(str(path), str(lock), python, build=["beta-x"])
    assert path.readlink().name == f"salt-{digest[:12]}"
    assert module.installed(str(path)) == digest == module.wanted(str(lock), python)
    wheels, source = (tmp_path / "pip.log").read_text().splitlines()
    assert "--only-binary=:all:" in wheels
    assert "--no-build-isolation" in source


def test_an_upgrade_keeps_the_environment_before_and_removes_older_ones(tmp_path, python, lock):
    path = tmp_path / "opt" / "salt"
    path.parent.mkdir()
    folders = []
    for version in ("1.0", "1.1", "1.2"):
        lock.write_text(LOCK.replace("alpha==1.0", f"alpha=={version}"))
        module.install(str(path), str(lock), python)
        folders.append(path.resolve())
    assert [folder.exists() for folder in folders] == [False, True, True]


def test_an_upgrade_leaves_what_is_not_an_environment_of_its_own(tmp_path, python, lock):
    path = tmp_path / "opt" / "salt"
    theirs = [path.with_name(f"salt-{name}") for name in ("formulas", "0123456789ab", "backup")]
    for folder in theirs:
        folder.mkdir(parents=True)
    (theirs[2] / venv.STAMP).touch()
    theirs.append(path.with_name("salt-x.tgz"))
    theirs[3].touch()
    for version in ("1.0", "1.1"):
        lock.write_text(LOCK.replace("alpha==1.0", f"alpha=={version}"))
        module.install(str(path), str(lock), python)
    assert all(one.exists() for one in theirs)


def test_a_plain_folder_is_moved_aside(tmp_path, python, lock):
    path = tmp_path / "opt" / "salt"
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "old").touch()
    module.install(str(path), str(lock), python)
    assert path.is_symlink()
    assert (tmp_path / "opt" / "salt-before" / "bin" / "old").exists()


def test_an_interrupted_or_failed_install_leaves_the_old_one_in_use(tmp_path, python, lock):
    path = tmp_path / "opt" / "salt"
    path.parent.mkdir()
    before = module.install(str(path), str(lock), python)
    lock.write_text(LOCK.replace("1.0", "3.0"))
    (tmp_path / "broken").touch()
    with pytest.raises(PlatformError, match=r"no such package.*wheelhouse"):
        module.install(str(path), str(lock), python)
    assert module.installed(str(path)) == before
    (tmp_path / "broken").unlink()
    assert module.install(str(path), str(lock), python) != before


def test_an_environment_without_its_interpreter_is_none(tmp_path, python, lock):
    path = tmp_path / "opt" / "salt"
    path.parent.mkdir()
    module.install(str(path), str(lock), python)
    (path / "bin" / "python").unlink()
    assert module.installed(str(path)) == ""


def test_a_missing_lock_file_is_named(monkeypatch):
    monkeypatch.setattr(module, "__salt__", {"cp.cache_file": lambda url: False}, raising=False)
    with pytest.raises(PlatformError, match="salt://gone"):
        module.wanted("salt://gone")


@pytest.fixture
def calls(monkeypatch):
    api = SimpleNamespace(
        installed=create_autospec(module.installed, return_value="old"),
        wanted=create_autospec(module.wanted, return_value="new"),
        install=create_autospec(module.install),
    )
    monkeypatch.setattr(
        state, "__salt__", {f"salt_venv.{name}": mock for name, mock in vars(api).items()}, raising=False
    )
    return api


@pytest.mark.parametrize("dry", [True, False])
def test_the_state_predicts_what_it_does(calls, monkeypatch, dry):
    monkeypatch.setattr(state, "__opts__", {"test": dry}, raising=False)
    result = state.installed("/opt/salt", "salt://lock", without=["timelib"])
    assert result["result"] is (None if dry else True)
    assert result["changes"] == {"digest": {"old": "old", "new": "new"}}
    assert calls.install.called is not dry


def test_the_state_leaves_what_is_in_place(calls, monkeypatch):
    monkeypatch.setattr(state, "__opts__", {"test": False}, raising=False)
    calls.installed.return_value = "new"
    assert state.installed("/opt/salt", "salt://lock")["changes"] == {}
    assert not calls.install.called
