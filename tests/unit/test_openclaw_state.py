"""The bot's formula as it is rendered, with a token in Vault and without."""

from __future__ import annotations

import re

import pytest
import yaml
from jinja2 import Environment

from aiplatform import settings

URLS = {"node1": {"url": "http://127.0.0.1:11434"}, "node0": {"url": "http://127.0.0.1:11435"}}


class Pillar(dict):
    """Pillar as Jinja sees it: keys are attributes too."""

    __getattr__ = dict.__getitem__


@pytest.fixture
def render(checkout):
    environment = Environment()  # noqa: S701 (renders no page)
    environment.filters["json"] = lambda value: yaml.dump(value, default_flow_style=True).strip().removesuffix("\n...")

    def rendered(token: str, installed: bool = False, kept: bool = False, here: bool = True, **openclaw) -> dict:
        pillar = settings.effective({"openclaw": openclaw}, checkout / "salt")
        salt = {"platform_secret.optional": lambda path, key: token, "ollama.instances": lambda: URLS}
        salt["platform_secret.kept"] = lambda path, key, file: kept and file == "/etc/openclaw/token"
        salt["service.available"] = lambda unit: installed
        salt["vault_server.is_host"] = lambda: here
        text = (checkout / "salt/openclaw/init.sls").read_text()
        grains = {"os_family": "Debian"}
        return yaml.safe_load(environment.from_string(text).render(pillar=Pillar(pillar), salt=salt, grains=grains))

    return rendered


def options(state: dict) -> dict:
    """The options of a state, of whichever function."""
    (rows,) = state.values()
    return {key: value for row in rows for key, value in row.items()}


def test_without_a_token_nothing_is_installed_and_it_is_said(render):
    found = render("")
    functions = {name: next(iter(state)) for name, state in found.items()}
    assert functions == {"openclaw-skipped": "notice.shown", "openclaw-token": "file.absent"}
    assert "docs/openclaw.md" in options(found["openclaw-skipped"])["text"]


def test_one_host_runs_the_bot(render):
    """Telegram gives a bot's messages to one program at a time."""
    assert [*render("77:a-token", here=False)] == ["openclaw-elsewhere"]


def test_a_bot_whose_token_is_gone_is_stopped(render):
    assert next(iter(render("", installed=True)["openclaw"])) == "service.dead"


def test_a_dry_run_that_cannot_ask_vault_foresees_no_end_of_the_bot(render):
    found = render("", installed=True, kept=True)
    functions = {name: next(iter(found[name])) for name in ("openclaw", "openclaw-token")}
    assert functions == {"openclaw": "service.running", "openclaw-token": "platform_secret.file"}
    assert "openclaw-skipped" not in found


def test_the_token_is_the_bots_alone(render):
    file = options(render("1:secret")["openclaw-token"])
    assert (file["user"], file["content"]) == ("openclaw", "{openclaw:telegram_token}")


def test_the_token_is_in_no_rendered_state(render):
    assert "1:secret" not in str(render("1:secret"))


@pytest.mark.parametrize(("slot", "url"), [(1, URLS["node1"]["url"]), (3, URLS["node0"]["url"])])
def test_it_asks_the_instance_of_its_slot(render, slot, url):
    file = options(render("1:a", slot=slot)["openclaw-settings"])
    dataset = file["dataset"]
    assert file["mode"] == "0640"
    assert (dataset["ollama_url"], dataset["model"]) == (url, f"slot-{slot}")


def test_settings_are_those_that_the_program_reads(render, checkout):
    program = (checkout / "salt/openclaw/files/bot.py").read_text()
    fields = re.search(r"class Settings:.*?\n    @classmethod", program, re.DOTALL).group(0)
    wanted = set(re.findall(r"^    (\w+): [a-z]", fields, re.MULTILINE))
    assert set(options(render("1:a")["openclaw-settings"])["dataset"]) == wanted
