"""The Telegram bot on its host, between a stand-in of the Bot API on the workstation and the model of slot 1."""

from __future__ import annotations

import json
import re
import subprocess
import uuid
from pathlib import Path

import pytest

from aiplatform import wait
from tests.lab.conftest import changed_or_failed

PROGRAM = Path(__file__).parent.parent / "telegram_stand_in.py"
PORT = 8081
TOKEN = f"77:{uuid.uuid4().hex}"
FRIEND, STRANGER = 7, 666
# Runs on the master: what an operator does with Vault's command line.
WRITE = """
import json, sys
from pathlib import Path
from aiplatform import vault
store, token = Path("/etc/salt/vault-keys"), sys.stdin.read()
keys = json.loads((store / "init.json").read_text())
with vault.root_for_a_moment(keys["url"], str(store / "ca.pem"), keys["keys"]) as client:
    kv, place = client.secrets.kv.v2, {"path": "ai-platform/openclaw", "mount_point": "secret"}
    if token:
        kv.create_or_update_secret(secret={"telegram_token": token}, **place)
    else:
        kv.delete_metadata_and_all_versions(**place)
"""


def feed(host, argv: list[str], text: str) -> None:
    """Run a command with something on its standard input, where no list of processes shows it."""
    command = ["docker", "exec", "-i", host.container, *argv]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True, timeout=120)


def put_token(master, token: str) -> None:
    """Put a token into Vault, or take it out where there is none."""
    feed(master, ["env", "PYTHONPATH=/srv/ai-platform/_utils", "/opt/salt/bin/python", "-c", WRITE], token)


def apply(master) -> dict:
    # Longer than the default: for as long as pip keeps the host busy, its minion is slow to say that it is at work.
    argv = ["salt", "--out=json", "--static", "-t", "300", "ai_server", "state.apply", "openclaw"]
    return master.json(argv, timeout=600)["ai_server"]


class Telegram:
    """The stand-in, asked from where it runs."""

    def __init__(self, host) -> None:
        self._host = host

    def ask(self, path: str, body=None):
        argv = ["curl", "-sf", f"http://127.0.0.1:{PORT}/stand-in/{path}"]
        return self._host.json([*argv, "-d", json.dumps(body)] if body is not None else argv)

    def sent(self, to: int) -> list[str]:
        """The texts that the bot has sent somebody."""
        rows = self.ask("seen")
        return [row["text"] for row in rows if row["chat_id"] == str(to) and row["method"] == "sendMessage"]

    def answer(self, user: int, text: str) -> str:
        """Write to the bot and return what it says."""
        before = len(self.sent(user))
        self.ask("say", {"user": user, "text": text})
        return wait.until(lambda: self.sent(user)[before:], 120, 0.5, "the bot's answer")[0]


@pytest.fixture(scope="module")
def telegram(workstation, master, ai_server):
    """A Bot API that knows one token; the bot is deployed with it, and taken away again at the end."""
    feed(workstation, ["sh", "-c", "cat > /tmp/telegram_stand_in.py"], PROGRAM.read_text())
    start = f"python3 /tmp/telegram_stand_in.py {PORT} {TOKEN} & echo $! > /tmp/telegram.pid; wait"
    subprocess.run(["docker", "exec", "-d", workstation.container, "sh", "-c", start], check=True, timeout=30)
    put_token(master, TOKEN)
    try:
        failed = {key: row["comment"] for key, row in apply(master).items() if row["result"] is not True}
        assert not failed
        yield Telegram(workstation)
    finally:
        put_token(master, "")
        apply(master)
        workstation.run("kill $(cat /tmp/telegram.pid); rm -f /tmp/telegram*", check=False)


def test_a_message_is_answered_by_the_model_of_slot_one(telegram, master):
    rows = master.salt("ai_server", "model_slots.table")["ai_server"]
    held = next(row["model"] for row in rows if row["slot"] == 1)
    assert held in telegram.answer(FRIEND, "/start")
    assert telegram.answer(FRIEND, "Say hello.")
    assert "typing" in [row.get("action") for row in telegram.ask("seen")]


def test_the_verification_finds_it_at_work(telegram, master):
    [row] = master.salt("ai_server", "verify.run", "only=[bot]")["ai_server"]
    assert row["ok"], row


def test_a_stranger_is_refused(telegram):
    assert str(STRANGER) in telegram.answer(STRANGER, "Say hello.")


def test_a_second_run_changes_nothing(telegram, master):
    assert changed_or_failed(apply(master)) == {}


def test_the_token_is_seen_by_the_bot_alone(telegram, ai_server):
    shown = ai_server.run("stat -c '%U %a' /etc/openclaw/token; journalctl -u openclaw --no-pager; ps axww").stdout
    assert shown.startswith("openclaw 400\n")
    assert TOKEN not in shown


def test_the_service_is_confined(telegram, ai_server):
    text = ai_server.run("systemd-analyze security --no-pager openclaw.service", check=False).stdout
    assert float(re.search(r"exposure level for \S+: ([\d.]+)", text).group(1)) <= 3
    assert ai_server.run("systemctl show -P User openclaw").stdout.strip() == "openclaw"


def test_it_comes_back_after_a_crash(telegram, ai_server):
    ai_server.run("kill -9 $(systemctl show -P MainPID openclaw)")
    assert telegram.answer(FRIEND, "/start")
