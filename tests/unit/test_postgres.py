"""PostgreSQL's roles and databases, on a server of this machine where it has one."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pg8000.native
import pytest

from _modules import platform_postgres as module
from _states import platform_postgres as state
from aiplatform import postgres, wait
from aiplatform.errors import PlatformError

PASSWORD = "correct horse battery staple"


def test_a_verifier_is_the_one_of_the_rfc():
    """The example of RFC 7677, section 3: the server's signature there comes from this server key."""
    import base64

    made = postgres.verifier("pencil", base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
    assert made == (
        "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY="
        ":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
    )


@pytest.mark.parametrize("kept", [None, "", "md5aabbcc", "SCRAM-SHA-256$x", postgres.verifier("another one")])
def test_what_is_no_verifier_of_the_password_does_not_match(kept):
    assert not postgres.matches(PASSWORD, kept)


def test_a_verifier_matches_its_password_and_is_never_the_same_twice():
    one, two = postgres.verifier(PASSWORD), postgres.verifier(PASSWORD)
    assert one != two
    assert postgres.matches(PASSWORD, one)
    assert postgres.matches(PASSWORD, two)


def test_changes_show_no_password():
    present = postgres.ROLE | {"rolpassword": postgres.verifier("old one"), "rolsuper": True}
    found = postgres.role_changes(present, PASSWORD)
    assert found == {
        "rolsuper": {"old": True, "new": False},
        "password": {"old": "as before", "new": "changed"},
    }


# -- against a server -------------------------------------------------------------------------------------------------


def programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def server():
    """A PostgreSQL with the formula's rules of access, on a socket only; gives the data root."""
    folder = programs()
    if folder is None or os.geteuid() != 0 or not shutil.which("setpriv"):
        pytest.skip("needs Debian's postgresql (its programs below /usr/lib/postgresql) and root, to be its user")
    # Not below pytest's folder, which is closed to the server's user.
    root = Path(tempfile.mkdtemp(prefix="postgres-test-"))
    data, socket = root / "postgres/data", root / "postgres/socket"
    socket.mkdir(parents=True)
    nobody = pwd.getpwnam("nobody")
    for path in [root, *root.rglob("*")]:
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    user = ["setpriv", f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    made = [*user, str(folder / "initdb"), "-D", str(data), "-U", "postgres", "--no-sync", "--locale=C.UTF-8"]
    subprocess.run(made, check=True, capture_output=True)
    (data / "pg_hba.conf").write_text("local all postgres peer map=host\nlocal all all scram-sha-256\n")
    (data / "pg_ident.conf").write_text("host root postgres\n")
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={socket}", "-c", "fsync=off"]
    with (root / "log").open("w") as log:
        process = subprocess.Popen([*user, str(folder / "postgres"), "-D", str(data), *options], stderr=log, stdout=log)
    try:
        wait.until(lambda: (socket / ".s.PGSQL.5432").exists(), 30, 0.1, "PostgreSQL")
        yield root
    finally:
        process.send_signal(signal.SIGINT)  # the fast way: it waits for no client
        process.wait(20)
        shutil.rmtree(root)


@pytest.fixture
def formula(server, monkeypatch):
    """The module and the state on that server; the secret is what the test says."""
    pillar = {"platform": {"data_root": str(server)}}
    secret = Mock(return_value=PASSWORD)
    names = ("role", "write_role", "database", "write_database")
    functions = {f"platform_postgres.{name}": getattr(module, name) for name in names}
    for one in (module, state):
        monkeypatch.setattr(one, "__pillar__", pillar, raising=False)
        monkeypatch.setattr(one, "__salt__", functions | {"platform_secret.read": secret}, raising=False)
        monkeypatch.setattr(one, "__opts__", {"test": False}, raising=False)
    return secret


def login(server, password, database="app"):
    socket = str(server / "postgres/socket/.s.PGSQL.5432")
    connection = pg8000.native.Connection("app", unix_sock=socket, database=database, password=password)
    connection.run("CREATE TABLE IF NOT EXISTS proof (one int)")
    connection.close()


def test_a_role_and_its_database_are_made_once_and_follow_the_secret(server, formula, monkeypatch):
    monkeypatch.setitem(state.__opts__, "test", True)
    assert state.role_present("app", "databases:app")["result"] is None
    assert module.role("app") is None
    monkeypatch.setitem(state.__opts__, "test", False)
    assert state.role_present("app", "databases:app")["changes"]["role"] == {"old": None, "new": "present"}
    assert state.database_present("app", "app")["changes"]["database"]["new"] == "owned by app"
    assert state.role_present("app", "databases:app")["changes"] == {}
    assert state.database_present("app", "app")["changes"] == {}
    login(server, PASSWORD)

    formula.return_value = "it's a new one"
    assert set(state.role_present("app", "databases:app")["changes"]) == {"password"}
    login(server, "it's a new one")
    with pytest.raises(pg8000.native.Error):
        login(server, PASSWORD)
    with pytest.raises(pg8000.native.DatabaseError, match="permission denied"):
        login(server, "it's a new one", database="postgres")
    log = (server / "log").read_text()
    assert 'password authentication failed for user "app"' in log
    assert PASSWORD not in log
    assert "it's a new one" not in log


def test_a_role_that_somebody_made_mighty_is_brought_back(server, formula):
    module.write_role("strong", PASSWORD)
    module._rows("ALTER ROLE strong SUPERUSER")
    assert state.role_present("strong", "databases:strong")["changes"] == {"rolsuper": {"old": True, "new": False}}
    assert state.role_present("strong", "databases:strong")["changes"] == {}


def test_a_refused_statement_is_told_without_the_statement(server, formula):
    with pytest.raises(PlatformError, match="refuses a statement") as caught:
        module.write_database("fine", "nobody_there")
    assert "nobody_there" in caught.value.actual
    assert "CREATE" not in str(caught.value)


def test_without_a_server_a_dry_run_tells_what_it_would_do(formula, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "__pillar__", {"platform": {"data_root": str(tmp_path)}}, raising=False)
    ret = state.role_present("app", "databases:app")
    assert ret["result"] is False
    assert "PostgreSQL does not answer" in ret["comment"]
    monkeypatch.setitem(state.__opts__, "test", True)
    assert state.role_present("app", "databases:app")["result"] is None
