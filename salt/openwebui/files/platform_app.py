"""Open WebUI's application with the platform's rules, where its own settings leave a gap. Runs inside its container.

- Sign-on: the role comes from the claim alone. Upstream makes the first account an administrator, and lets those whose
  claim is empty or missing keep the role they had.
- Models: no request reaches an instance that does not offer the model, and none carries options with which Ollama would
  load a model anew or unpin it. What changes the store of models is not offered: pillar says what is there.

It stands on names inside Open WebUI; where one of them is gone, as in another version, the container does not start.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import HTTPException, status
from open_webui.constants import ERROR_MESSAGES
from open_webui.routers import ollama
from open_webui.utils import oauth

LOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
ANSWERING = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings")
STORE = (
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/unload",
    "/models/download",
    "/models/upload",
)


def roles_of(claims: dict[str, Any] | None, claim: str) -> list[str]:
    """Return the roles that a token's claims hold; none where the claim is missing or no list."""
    # Upstream's own reader knows dotted names.
    found = oauth._get_claim(claims or {}, claim)
    return [str(role) for role in found] if isinstance(found, list) else []


async def role_by_claim(_self: Any, _user: Any, user_data: dict[str, Any], *, token_claims: Any = None) -> str:
    """Return ``admin`` or ``user``, or refuse whoever has no role of the platform."""
    config = await oauth.get_oauth_runtime_config()
    claim = config.OAUTH_ROLES_CLAIM
    roles = set(roles_of(user_data, claim) or roles_of(token_claims, claim))
    if roles & set(config.OAUTH_ADMIN_ROLES):
        return "admin"
    if roles & set(config.OAUTH_ALLOWED_ROLES):
        return "user"
    raise HTTPException(status.HTTP_403_FORBIDDEN, detail=ERROR_MESSAGES.ACCESS_PROHIBITED)


def plain(url: str, payload: Any) -> Any:
    """Return a request's body without what would load a model anew or change how long it stays."""
    if not isinstance(payload, str | bytes) or not url.endswith(ANSWERING):
        return payload
    body = json.loads(payload)
    body.pop("keep_alive", None)
    if isinstance(body.get("options"), dict):
        body["options"] = {key: value for key, value in body["options"].items() if key not in LOADING}
    return json.dumps(body)


def enforce() -> None:
    """Put the rules in the place of upstream's functions."""
    send, choose = ollama.send_request, ollama.get_ollama_url

    async def send_plain(url: str, *args: Any, payload: Any = None, **more: Any) -> Any:
        return await send(url, *args, payload=plain(url, payload), **more)

    async def choose_by_model(request: Any, model: str, _url_idx: int | None = None, user: Any = None) -> Any:
        return await choose(request, model, None, user)

    # Addresses of sign-ons hold their codes.
    logging.getLogger("uvicorn.access").addFilter(lambda _record: False)
    if not callable(oauth.OAuthManager.get_user_role):
        raise TypeError("Open WebUI has no OAuthManager.get_user_role: this version is not known")
    ollama.send_request = send_plain
    ollama.get_ollama_url = choose_by_model
    oauth.OAuthManager.get_user_role = role_by_claim
    ollama.router.routes[:] = [
        route for route in ollama.router.routes if not getattr(route, "path", "").startswith(STORE)
    ]


enforce()

from open_webui.main import app  # noqa: E402 (it takes the routes as they are by now)

__all__ = ["app"]
