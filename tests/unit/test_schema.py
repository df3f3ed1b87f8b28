"""What is refused in pillar, and how the refusal reads."""

from __future__ import annotations

import copy

import pytest
import yaml

from aiplatform import schema, services, settings, slot_rules
from tests.conftest import CHECKOUT

TREE = CHECKOUT / "salt"


@pytest.fixture
def pillar():
    return {
        key: value
        for name in ("platform", "slots")
        for key, value in yaml.safe_load((CHECKOUT / f"pillar/{name}.sls").read_text()).items()
    }


def refusals(pillar):
    """Every problem, as the operator reads it."""
    merged = settings.effective(pillar, TREE)
    found = schema.problems(merged, TREE, written=pillar) or slot_rules.problems(merged | {"selection": {}})
    return [str(problem) for problem in found or services.problems(merged)]


def put(pillar, path, value):
    """Set a dotted key."""
    changed = copy.deepcopy(pillar)
    *parents, last = path.split(".")
    node = changed
    for part in parents:
        node = node.setdefault(int(part) if part.isdigit() else part, {})
    node[last] = value
    return changed


def test_the_pillar_of_this_checkout_is_right(pillar):
    assert refusals(pillar) == []


CASES = {
    "wrong type": ("preflight.clock_skew", "long", "preflight.clock_skew: is 'long', expected a number"),
    "unknown key": (
        "platform.domian",
        "a.b",
        "platform.domian: is 'a.b', expected a known key",
        "did you mean domain?",
    ),
    "unknown top key": (
        "ollma",
        {"version": 1},
        "ollma: is 'a mapping of 1', expected a known key",
        "did you mean ollama?",
    ),
    "host without address": (
        "platform.hosts.spare",
        {"roles": []},
        "platform.hosts.spare.address: is None",
        "an IP address",
    ),
    "address no IP": (
        "platform.hosts.ai_server.address",
        "1.2.3",
        "hosts.ai_server.address: is '1.2.3', expected an IP address",
    ),
    "unknown role": ("platform.hosts.ai_server.roles", ["ai_sever"], "is 'ai_sever'", "did you mean ai_server?"),
    "two hosts, one address": (
        "platform.hosts.nginx_proxy.address",
        "192.0.2.100",
        "hosts.nginx_proxy.address",
        "ai_server has this one",
    ),
    "two instances, one unit": (
        "ollama.instances.node0.unit",
        "ollama.service",
        "ollama.instances.node0.unit: is 'ollama.service'",
        "instance node1 has this one",
    ),
    "ports overlap": (
        "services.vault.port",
        11434,
        "services.vault.port: is 11434, expected a port of its own: ollama-node1 on ai_server has this one",
    ),
    "instances overlap": (
        "ollama.instances.node1.port",
        11435,
        "ollama.instances.node1.port: is 11435, expected a port of its own: ollama-node0",
    ),
    "unit like its warm-up's": (
        "ollama.instances.node1.unit",
        "llm.service",
        "ollama.instances.node1.unit: is 'llm.service'",
        "ollama",
    ),
    "port out of range": ("services.vault.port", 70000, "services.vault.port: is 70000, expected at most 65535"),
    "slot on no instance": ("slots.5.instance", "node7", "slots.5.instance: is 'node7', expected one of node1, node0"),
    "untagged model": ("slots.5.model", "llama3.1", "slots.5.model: is 'llama3.1', expected a model name with its tag"),
    "untagged in a registry": ("slots.5.model", "10.0.0.1:5000/library/a", "expected a model name with its tag"),
    "untagged baseline": (
        "benchmark.baseline_models",
        ["llama3.2"],
        "benchmark.baseline_models.0: is 'llama3.2', expected a model name with its tag",
    ),
    "untagged candidate": (
        "benchmark.candidate_models",
        [{"name": "llama3.2"}],
        "benchmark.candidate_models.0.name: is 'llama3.2', expected a model name with its tag",
    ),
    "locked slot": (
        "slots.1.model",
        "llama3.1:8b",
        "slots.1.model: is 'llama3.1:8b', expected null: only slots 5 and 6",
    ),
    "alias of no slot": ("aliases.gpt", {"slot": 9}, "aliases.gpt.slot: is 9, expected one of 1, 2"),
    "alias of nothing": ("aliases.gpt", {}, "aliases.gpt", "expected either slot"),
    "secret": (
        "openclaw",
        {"telegram_token": "1:abc"},
        "openclaw.telegram_token: is '(hidden)', expected no secret in pillar",
    ),
    "certificate too old before it is renewed": (
        "verify.certificate_days",
        30,
        "verify.certificate_days: is 30, expected less than vault.renew_days (30)",
    ),
    "limit": ("limit", ["ai_serve"], "limit: is 'ai_serve'", "did you mean ai_server?"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_refused_with_key_value_and_expectation(pillar, case):
    path, value, *texts = case
    found = refusals(put(pillar, path, value))
    assert any(all(text in line for text in texts) for line in found), found


def test_a_secret_is_never_shown(pillar):
    assert "1:abc" not in " ".join(refusals(put(pillar, "openclaw", {"telegram_token": "1:abc"})))


def test_problems_are_shown_as_a_table(pillar):
    lines = refusals(put(pillar, "platform.domian", "x: is y"))
    text = schema.as_table([*lines, "Specified SLS 'x' is not available"])
    header, _, row, other = text.splitlines()
    assert header.split() == ["key", "is", "expected"]
    assert row.startswith("platform.domian  'x: is y'  a known key: one of")
    assert other.endswith("Specified SLS 'x' is not available")


def test_how_a_secret_is_made_is_no_secret(pillar):
    wanted = {"readers": ["ai_server"], "keys": {"admin_password": "base64_16"}}
    assert refusals(put(pillar, "vault.secrets.wiki", wanted)) == []


def test_all_problems_are_found_at_once(pillar):
    wrong = put(put(put(pillar, "platform.domain", 5), "platform.slug", "A B"), "preflight.root_free_gb", -1)
    assert len(refusals(wrong)) == 3


@pytest.mark.parametrize("model", ["a:1", "10.0.0.1:5000/library/a:q4_k_m", "hf.co/x/y:Q4", "host/x:latest"])
def test_tagged_models(model):
    assert schema.is_tagged(model)


def test_salts_own_pillar_keys_are_allowed(pillar):
    assert refusals(put(pillar, "mine_functions", {"test.ping": []})) == []


def test_every_default_is_described_and_passes():
    """The defaults alone lack nothing but the hosts."""
    assert [line.split(":")[0] for line in refusals({})] == ["platform.hosts"]


@pytest.mark.parametrize("path", sorted(TREE.glob("*/schema.yaml")), ids=lambda path: path.parent.name)
def test_schemas_are_valid_and_describe_every_key(path):
    import jsonschema

    for key, value in settings.schemas(TREE).items():
        jsonschema.Draft202012Validator.check_schema(value)
        assert value.get("description"), key


@pytest.mark.parametrize("path", sorted(TREE.glob("*/defaults.yaml")), ids=lambda path: path.parent.name)
def test_no_default_without_a_schema(path):
    assert set(settings.read_yaml(path)) <= set(settings.schemas(TREE))
