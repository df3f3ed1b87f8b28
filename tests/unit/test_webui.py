"""Open WebUI's settings out of pillar."""

from __future__ import annotations

import json

import pytest

from aiplatform import settings, webui
from aiplatform.errors import NotFoundError

HOSTS = {
    "ai_server": {"address": "192.0.2.100", "roles": ["ai_server"]},
    "proxy": {"address": "192.0.2.30", "roles": ["nginx_proxy"]},
}
BUNDLE = "/run/platform/authorities.crt"


@pytest.fixture
def pillar(checkout):
    return settings.effective({"platform": {"hosts": HOSTS, "domain": "example.com"}}, checkout / "salt")


def test_each_name_is_offered_by_the_instance_of_its_slot_alone(pillar):
    found = webui.offered(pillar)
    assert found == {
        "node1": ["llama-family", "gemma-family", "slot-5"],
        "node0": ["coder-128k", "coder-32k", "coder-rotate"],
    }


def test_a_name_follows_its_slot_to_the_other_instance(pillar):
    pillar["slots"][1]["instance"] = "node0"
    found = webui.offered(pillar)
    assert "llama-family" in found["node0"]
    assert "llama-family" not in found["node1"]


def test_an_alias_with_a_model_of_its_own_is_offered_where_it_is_resident(pillar):
    pillar["aliases"]["tiny"] = {"model": "tiny:1b", "instance": "node0"}
    assert "tiny" in webui.offered(pillar)["node0"]
    assert "tiny" not in webui.offered(pillar)["node1"]


def test_the_embedding_model_is_not_one_to_chat_with(pillar):
    assert "embedding" not in [name for names in webui.offered(pillar).values() for name in names]


def test_connections_name_what_each_offers(pillar):
    urls, configs = webui.connections(pillar)
    assert urls == ["http://host.docker.internal:11434", "http://host.docker.internal:11435"]
    assert configs["1"] == {
        "enable": True,
        "model_ids": ["coder-128k:latest", "coder-32k:latest", "coder-rotate:latest"],
    }


def test_an_instance_without_names_is_off_since_an_empty_list_would_offer_all(pillar):
    for slot in pillar["slots"].values():
        slot["instance"] = "node1"
    _, configs = webui.connections(pillar)
    assert configs["1"] == {"enable": False, "model_ids": []}


@pytest.mark.parametrize("name", ["nothing", "llama-family"])
def test_an_embedding_model_that_is_none_is_refused(pillar, name):
    pillar["openwebui"]["embedding"] = name
    with pytest.raises(NotFoundError, match=r"openwebui\.embedding.*there are: embedding"):
        webui.environment(pillar, BUNDLE)


def test_embeddings_come_from_the_instance_that_holds_the_model(pillar):
    pillar["aliases"]["embedding"]["instance"] = "node0"
    assert webui.environment(pillar, BUNDLE)["RAG_OLLAMA_BASE_URL"] == "http://host.docker.internal:11435"


def test_settings_stay_under_pillars_control_and_the_gate_is_closed(pillar):
    found = webui.environment(pillar, BUNDLE)
    assert all(isinstance(value, str) for value in found.values())
    wanted = {
        "ENABLE_PERSISTENT_CONFIG": "false",
        "ENABLE_SIGNUP": "false",
        "ENABLE_PASSWORD_AUTH": "false",
        "DEFAULT_USER_ROLE": "pending",
        "ENABLE_OAUTH_ROLE_MANAGEMENT": "true",
        "OAUTH_ROLES_CLAIM": "realm_access.roles",
        "OAUTH_ALLOWED_ROLES": "ai-user,ai-admin",
        "OAUTH_ADMIN_ROLES": "ai-admin",
        "OPENID_REDIRECT_URI": "https://ollama-ui.example.com/oauth/oidc/callback",
        "ENABLE_OPENAI_API": "false",
        "ENABLE_EVALUATION_ARENA_MODELS": "false",
        "VECTOR_DB": "qdrant",
        "SSL_CERT_FILE": BUNDLE,
        "DEFAULT_MODELS": "llama-family:latest",
        "OAUTH_CLIENT_ID": "open-webui",
        "OAUTH_SCOPES": "openid email profile",
        "ENABLE_ADMIN_EXPORT": "true",
    }
    assert {key: found[key] for key in wanted} == wanted
    assert json.loads(found["OLLAMA_API_CONFIGS"])["0"]["enable"] is True


def test_people_see_the_platforms_name(pillar):
    found = webui.environment(pillar, BUNDLE)
    assert found["WEBUI_NAME"] == found["OAUTH_PROVIDER_NAME"] == pillar["platform"]["name"]


def test_nothing_leaves_the_building(pillar):
    found = webui.environment(pillar, BUNDLE)
    closed = {"OFFLINE_MODE": "true", "DO_NOT_TRACK": "true", "SCARF_NO_ANALYTICS": "true"}
    closed |= dict.fromkeys(("ENABLE_VERSION_UPDATE_CHECK", "ANONYMIZED_TELEMETRY", "ENABLE_WEB_SEARCH"), "false")
    closed |= dict.fromkeys(("ENABLE_COMMUNITY_SHARING", "ENABLE_DIRECT_CONNECTIONS"), "false")
    assert {key: found[key] for key in closed} == closed


def test_what_the_operator_adds_counts(pillar):
    pillar["openwebui"]["environment"] = {"RAG_TOP_K": "9", "ENABLE_NOTES": "false"}
    found = webui.environment(pillar, BUNDLE)
    assert (found["RAG_TOP_K"], found["ENABLE_NOTES"]) == ("9", "false")


def test_no_secret_is_in_the_environment_that_docker_shows(pillar):
    secret = {"WEBUI_SECRET_KEY", "OAUTH_CLIENT_SECRET", "DATABASE_URL", "QDRANT_API_KEY", "WEBUI_ADMIN_PASSWORD"}
    assert not secret & webui.environment(pillar, BUNDLE).keys()


def test_the_sign_on_is_found_at_the_proxy(pillar):
    assert webui.known_hosts(pillar) == {"idm.example.com": "192.0.2.30"}
    assert webui.proxies(pillar) == ["192.0.2.30"]


def test_a_title_may_not_ramble(pillar):
    assert json.loads(webui.environment(pillar, BUNDLE)["TASK_MODEL_PARAMS"]) == {"max_tokens": 64}


@pytest.mark.parametrize(
    ("name", "place"), [("TITLE_GENERATION_PROMPT_TEMPLATE", "{{prompt:start:400}}"), ("RAG_TEMPLATE", "{{CONTEXT}}")]
)
def test_orders_to_models_are_short(pillar, name, place):
    order = webui.environment(pillar, BUNDLE)[name]
    assert place in order
    assert len(order.split()) < 60


def test_pillar_may_give_another_order(pillar):
    pillar["openwebui"]["environment"] = {"RAG_TEMPLATE": "Say it in verse: {{CONTEXT}}"}
    assert webui.environment(pillar, BUNDLE)["RAG_TEMPLATE"] == "Say it in verse: {{CONTEXT}}"


def test_a_question_carries_no_tools_that_its_model_may_not_know(pillar):
    assert json.loads(webui.environment(pillar, BUNDLE)["DEFAULT_MODEL_PARAMS"]) == {"function_calling": "legacy"}
