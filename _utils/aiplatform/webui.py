"""Open WebUI's settings, out of pillar. Pure: talks to no server.

All of them come from the environment (``ENABLE_PERSISTENT_CONFIG`` is off), so that an edit of pillar counts after
the first start too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiplatform import services, slots
from aiplatform.containers import TMP
from aiplatform.errors import NotFoundError

Settings = Mapping[str, Any]

# The host, as its containers name it.
HOST = "host.docker.internal"
DATA = "/app/backend/data"
CLIENT_ID = "open-webui"
# Orders to models are short, since processors read them before the first word: a title of the lab's question takes 82
# tokens instead of upstream's 295, an answer out of its document 140 instead of 428 (counted by Ollama).
# Upstream lets a model that rambles have a thousand for a title. Where no title comes of it, the question stands.
TITLE_TOKENS = 64
TITLE_ORDER = """Name the topic of this question in two to four words, in its own language.
Answer with JSON alone: { "title": "the words" }

{{prompt:start:400}}"""
DOCUMENTS_ORDER = """Answer the question by the context below, in the language of the question.
Cite a source as [1] where that id is given, and only then. Say so where the context does not hold the answer.

<context>
{{CONTEXT}}
</context>
"""


def offered(settings: Settings) -> dict[str, list[str]]:
    """Return ``{instance: the names that it offers for chats}``, each name on one instance only.

    Clients call aliases; a slot without one is offered by its technical name. Names are those of pillar, so that
    another choice of models changes nothing here. The embedding model is not one to chat with.
    """
    found: dict[str, list[str]] = {name: [] for name in settings["ollama"]["instances"]}
    rows = {name: row for name, row in settings["aliases"].items() if name != settings["openwebui"]["embedding"]}
    for number, slot in sorted(settings["slots"].items(), key=lambda item: int(item[0])):
        own = sorted(name for name, row in rows.items() if row.get("slot") == int(number) and not row.get("model"))
        found[slot["instance"]] += own or [slots.technical_name(int(number))]
    for name, row in sorted(rows.items()):
        if row.get("model"):
            found[str(row["instance"])].append(name)
    return found


def connections(settings: Settings) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Return the instances' URLs, and the settings of each connection by its number.

    A connection names the models that it offers: both instances list the whole store. One without any is off, since an
    empty list would offer everything.
    """
    names = offered(settings)
    urls = [instance_url(settings, name) for name in names]
    configs = {
        str(number): {"enable": bool(models), "model_ids": [f"{model}:latest" for model in models]}
        for number, models in enumerate(names.values())
    }
    return urls, configs


def instance_url(settings: Settings, instance: str) -> str:
    """Return an instance's URL as the host's containers reach it."""
    return f"http://{HOST}:{settings['ollama']['instances'][instance]['port']}"


def embedding_instance(settings: Settings) -> str:
    """Return the instance that holds the embedding model.

    Raises ``NotFoundError`` where ``openwebui.embedding`` names no alias with a model of its own.
    """
    name = settings["openwebui"]["embedding"]
    row = settings["aliases"].get(name) or {}
    if not (row.get("model") and row.get("instance")):
        known = ", ".join(sorted(key for key, one in settings["aliases"].items() if one.get("model"))) or "none"
        raise NotFoundError(
            "There is no embedding model", where="openwebui.embedding", actual=name,
            expected=f"an alias with a model and an instance of its own; there are: {known}",
        )  # fmt: skip
    return str(row["instance"])


def public_url(settings: Settings, service: str) -> str:
    """Return the address at which people find a service."""
    return f"https://{settings['services'][service]['name']}.{settings['platform']['domain']}"


def environment(settings: Settings, bundle: str) -> dict[str, str]:
    """Return Open WebUI's environment, its secrets apart.

    settings
        The effective pillar.
    bundle
        The file with the authorities to trust, as the container sees it.
    """
    parts = [
        _general(settings),
        _sign_on(settings),
        _models(settings),
        _documents(settings),
        _trust(bundle),
        settings["openwebui"]["environment"],
    ]
    return {
        key: value if isinstance(value, str) else json.dumps(value) for part in parts for key, value in part.items()
    }


def _general(settings: Settings) -> dict[str, Any]:
    wanted, url = settings["openwebui"], public_url(settings, "openwebui")
    return {
        # What the environment says counts, also after the first start.
        "ENABLE_PERSISTENT_CONFIG": False,
        "ENV": "prod",
        "WEBUI_NAME": settings["platform"]["name"],
        "WEBUI_URL": url,
        "CORS_ALLOW_ORIGIN": url,
        "DATA_DIR": DATA,
        # Written at each start; the root file system is read-only.
        "STATIC_DIR": f"{TMP}/static",
        "HOME": TMP,
        "PYTHONPATH": "/run/platform",
        # Nothing leaves the building.
        "OFFLINE_MODE": True,
        "ENABLE_VERSION_UPDATE_CHECK": False,
        "ANONYMIZED_TELEMETRY": False,
        "DO_NOT_TRACK": True,
        "SCARF_NO_ANALYTICS": True,
        "ENABLE_COMMUNITY_SHARING": False,
        "ENABLE_WEB_SEARCH": False,
        "ENABLE_DIRECT_CONNECTIONS": False,
        "ENABLE_IMAGE_GENERATION": False,
        # They would go on asking models for somebody whose role was taken away.
        "ENABLE_AUTOMATIONS": False,
        "ENABLE_PIP_INSTALL_FRONTMATTER_REQUIREMENTS": False,
        # Speech is the browser's; a model of its own would be downloaded.
        "AUDIO_STT_ENGINE": "webapi",
        "ENABLE_ADMIN_EXPORT": True,
        "ENABLE_API_KEYS": wanted["api_keys"],
        "USER_PERMISSIONS_FEATURES_API_KEYS": wanted["api_keys"],
        "GLOBAL_LOG_LEVEL": wanted["log_level"],
    }


def _sign_on(settings: Settings) -> dict[str, Any]:
    wanted, url = settings["openwebui"], public_url(settings, "openwebui")
    return {
        "WEBUI_AUTH": True,
        "ENABLE_SIGNUP": False,
        "ENABLE_LOGIN_FORM": False,
        "ENABLE_PASSWORD_AUTH": False,
        # There must be an account before the first person signs on; nobody signs on as this one.
        "WEBUI_ADMIN_EMAIL": f"salt@{settings['services']['openwebui']['name']}.{settings['platform']['domain']}",
        "WEBUI_ADMIN_NAME": "Salt",
        "DEFAULT_USER_ROLE": "pending",
        "ENABLE_OAUTH_SIGNUP": True,
        "OAUTH_MERGE_ACCOUNTS_BY_EMAIL": False,
        "OAUTH_CLIENT_ID": CLIENT_ID,
        "OAUTH_CODE_CHALLENGE_METHOD": "S256",
        "OAUTH_PROVIDER_NAME": settings["platform"]["name"],
        "OAUTH_SCOPES": "openid email profile",
        "OPENID_REDIRECT_URI": f"{url}/oauth/oidc/callback",
        "ENABLE_OAUTH_ROLE_MANAGEMENT": True,
        "OAUTH_ROLES_CLAIM": "realm_access.roles",
        "OAUTH_ALLOWED_ROLES": ",".join([*wanted["user_roles"], *wanted["admin_roles"]]),
        "OAUTH_ADMIN_ROLES": ",".join(wanted["admin_roles"]),
        "ENABLE_OAUTH_ID_TOKEN_COOKIE": False,
        "JWT_EXPIRES_IN": wanted["session"],
        "WEBUI_SESSION_COOKIE_SECURE": True,
        "WEBUI_AUTH_COOKIE_SECURE": True,
        "WEBUI_SESSION_COOKIE_SAME_SITE": "lax",
        "WEBUI_AUTH_COOKIE_SAME_SITE": "lax",
    }


def _models(settings: Settings) -> dict[str, Any]:
    wanted = settings["openwebui"]
    urls, configs = connections(settings)
    model = f"{wanted['default_model']}:latest"
    return {
        "ENABLE_OLLAMA_API": True,
        "OLLAMA_BASE_URLS": ";".join(urls),
        "OLLAMA_API_CONFIGS": configs,
        "ENABLE_OPENAI_API": False,
        "ENABLE_EVALUATION_ARENA_MODELS": False,
        # Each model is for everybody who has a role; without this, users see none.
        "BYPASS_MODEL_ACCESS_CONTROL": True,
        "DEFAULT_MODELS": model,
        # Otherwise each question from the browser carries tools, and a model that was not made for them refuses it.
        "DEFAULT_MODEL_PARAMS": {"function_calling": "legacy"},
        # What is generated beside an answer is asked of a resident model, or not at all.
        "TASK_MODEL": model,
        "TASK_MODEL_PARAMS": {"max_tokens": TITLE_TOKENS},
        "ENABLE_TITLE_GENERATION": wanted["titles"],
        "TITLE_GENERATION_PROMPT_TEMPLATE": TITLE_ORDER,
        "ENABLE_TAGS_GENERATION": False,
        "ENABLE_FOLLOW_UP_GENERATION": False,
        "ENABLE_AUTOCOMPLETE_GENERATION": False,
        "ENABLE_RETRIEVAL_QUERY_GENERATION": False,
        "ENABLE_SEARCH_QUERY_GENERATION": False,
        "USER_PERMISSIONS_CHAT_PARAMS": False,
        "USER_PERMISSIONS_CHAT_CONTROLS": False,
        "AIOHTTP_CLIENT_TIMEOUT": str(wanted["answer_timeout"]),
    }


def _documents(settings: Settings) -> dict[str, Any]:
    wanted = settings["openwebui"]
    return {
        "RAG_EMBEDDING_ENGINE": "ollama",
        "RAG_EMBEDDING_MODEL": f"{wanted['embedding']}:latest",
        "RAG_OLLAMA_BASE_URL": instance_url(settings, embedding_instance(settings)),
        "RAG_EMBEDDING_BATCH_SIZE": str(wanted["embedding_batch"]),
        "ENABLE_RAG_HYBRID_SEARCH": False,
        "CHUNK_SIZE": str(wanted["chunk_size"]),
        "CHUNK_OVERLAP": str(wanted["chunk_overlap"]),
        "RAG_TOP_K": str(wanted["top_k"]),
        "RAG_TEMPLATE": DOCUMENTS_ORDER,
        "VECTOR_DB": "qdrant",
        # By its name in the containers' network.
        "QDRANT_URI": "http://qdrant:6333",
        "QDRANT_COLLECTION_PREFIX": CLIENT_ID,
        "ENABLE_QDRANT_MULTITENANCY_MODE": True,
    }


def _trust(bundle: str) -> dict[str, Any]:
    """Each HTTP library has a variable of its own."""
    return dict.fromkeys(
        ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AIOHTTP_CLIENT_SSL_CERT_FILE", "AIOHTTP_CLIENT_SESSION_SSL"), bundle
    )


def proxies(settings: Settings) -> list[str]:
    """Return the addresses whose word on a client's address counts: the proxies'."""
    return sorted(services.hosts_of(settings, "nginx_proxy").values())


def known_hosts(settings: Settings) -> dict[str, str]:
    """Return ``{public name of the sign-on: the first proxy's address}``.

    A container asks its host's name servers, which need not be the platform's own.
    """
    name = (settings["services"].get("keycloak") or {}).get("name")
    found = proxies(settings)
    return {f"{name}.{settings['platform']['domain']}": found[0]} if name and found else {}
