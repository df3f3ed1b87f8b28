"""Open WebUI's application with the platform's rules, where its own settings leave a gap. Runs inside its container.

- Sign-on: the role comes from the claim alone. Upstream makes the first account an administrator, and lets those whose
  claim is empty or missing keep the role they had.
- API keys: one counts as long as its owner's last sign-on does. Upstream's counts for ever, with the role of that day.
- Signing out ends the person's sessions wherever they are. Upstream does that with Redis only, which is not there.
- Models: no request reaches an instance that does not offer the model, and none carries what would have Ollama load a
  model anew, unpin it or take another one. What changes the store of models is not offered: pillar says what is there.
- Titles: a new chat's is asked for when its first answer has ended. Upstream asks for both at once, and where an
  instance takes one request at a time, people may wait for the title.

It stands on names inside Open WebUI; where one of them is gone, as in another version, the container does not start.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from contextlib import suppress
from importlib import import_module
from typing import Any
from weakref import WeakValueDictionary

from fastapi import HTTPException, status
from open_webui.config import JWT_EXPIRES_IN
from open_webui.constants import ERROR_MESSAGES
from open_webui.env import AIOHTTP_CLIENT_TIMEOUT
from open_webui.models.users import Users
from open_webui.routers import auths, ollama
from open_webui.utils import auth, oauth
from open_webui.utils.misc import parse_duration

# Where an account says when its owner signed on last: beside the number that the sign-on knows them by.
PROVIDER, SIGNED_ON = "oidc", "signed_on"
SESSION = parse_duration(JWT_EXPIRES_IN).total_seconds()
# What a request is about, and what no request may say. Ollama reads keys without regard to case and takes the last one.
KEPT, LEFT_OUT = ("model", "name", "options"), ("keep_alive",)
LOADING = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread")
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


async def role_by_claim(_self: Any, user: Any, user_data: dict[str, Any], *, token_claims: Any = None) -> str:
    """Return ``admin`` or ``user``, or refuse whoever has no role of the platform: what they had here ends at once."""
    config = await oauth.get_oauth_runtime_config()
    claim = config.OAUTH_ROLES_CLAIM
    roles = set(roles_of(user_data, claim) or roles_of(token_claims, claim))
    if roles & set(config.OAUTH_ADMIN_ROLES):
        return "admin"
    if roles & set(config.OAUTH_ALLOWED_ROLES):
        return "user"
    if user:
        await Users.update_user_role_by_id(user.id, "pending")
    raise HTTPException(status.HTTP_403_FORBIDDEN, detail=ERROR_MESSAGES.ACCESS_PROHIBITED)


async def note_sign_on(user: Any, at: float) -> None:
    """Keep when a person signed on."""
    known = user.oauth or {}
    noted = {**known.get(PROVIDER, {}), SIGNED_ON: int(at)}
    await Users.update_user_by_id(user.id, {"oauth": {**known, PROVIDER: noted}})


def signed_on(user: Any) -> bool:
    """Return whether a person's last sign-on still counts."""
    at = (user.oauth or {}).get(PROVIDER, {}).get(SIGNED_ON, 0)
    return time.time() - at < SESSION


async def sign_out(request: Any, token: str) -> None:
    """End all sessions of the person whose token this is, where it counts; that token's too."""
    claims = auth.decode_token(token) or {}
    if await Users.get_user_by_id(claims.get("id", "")) and await auth.is_valid_token(claims):
        await auth.revoke_user_tokens(request, claims["id"])


def plain(payload: Any) -> Any:
    """Return a request's body without what would load a model anew, change how long it stays, or name another one."""
    body = json.loads(payload) if isinstance(payload, str | bytes) else None
    if not isinstance(body, dict):
        return payload
    named = KEPT + LEFT_OUT
    body = {key: value for key, value in body.items() if key in KEPT or key.casefold() not in named}
    if isinstance(body.get("options"), dict):
        body["options"] = {key: value for key, value in body["options"].items() if key not in LOADING}
    return json.dumps(body)


def put(place: Any, name: str, rule: Any) -> None:
    """Put a rule in the place of upstream's function. Raises ``AttributeError`` where this version has none."""
    getattr(place, name)
    setattr(place, name, rule)


def enforce() -> None:
    """Put the rules in the place of upstream's functions."""
    send, choose, offered = ollama.send_request, ollama.get_ollama_url, ollama.validate_ollama_backend_idx
    sign_in, user_of_key = auth.create_signin_response, auth.get_current_user_by_api_key

    async def send_plain(url: str, *args: Any, payload: Any = None, **more: Any) -> Any:
        return await send(url, *args, payload=plain(payload), **more)

    async def choose_by_model(request: Any, model: str, _url_idx: int | None = None, user: Any = None) -> Any:
        return await choose(request, model, None, user)

    async def offered_to_anybody(request: Any, model: str, url_idx: int | None, user: Any) -> None:
        # Upstream lets an administrator load whatever is in the store on any instance.
        await offered(request, model, url_idx, user.model_copy(update={"role": "user"}))

    async def sign_in_and_note(request: Any, user: Any, *args: Any, **more: Any) -> Any:
        answer = await sign_in(request, user, *args, **more)
        await note_sign_on(user, time.time())
        return answer

    async def user_of_fresh_key(request: Any, key: str) -> Any:
        user = await user_of_key(request, key)
        if not signed_on(user):
            raise HTTPException(status.HTTP_401_UNAUTHORIZED, detail="The owner of this key has to sign on again.")
        return user

    # Addresses of sign-ons hold their codes.
    logging.getLogger("uvicorn.access").addFilter(lambda _record: False)
    put(ollama, "send_request", send_plain)
    put(ollama, "get_ollama_url", choose_by_model)
    put(ollama, "validate_ollama_backend_idx", offered_to_anybody)
    put(oauth.OAuthManager, "get_user_role", role_by_claim)
    put(auth, "create_signin_response", sign_in_and_note)
    put(auth, "get_current_user_by_api_key", user_of_fresh_key)
    put(auths, "invalidate_token", sign_out)
    ollama.router.routes[:] = [
        route for route in ollama.router.routes if not getattr(route, "path", "").startswith(STORE)
    ]


def take_turns(application: Any) -> None:
    """Have the application ask for a new chat's title when the task of its first answer has ended, however it ended."""
    begin, title = application.create_task, application.background_tasks_handler
    # By the chat's number, as long as somebody waits or is waited for.
    ends: WeakValueDictionary[str, asyncio.Event] = WeakValueDictionary()

    async def begin_and_tell(redis: Any, coroutine: Any, id: Any = None, **more: Any) -> Any:
        number, task = await begin(redis, coroutine, id=id, **more)
        ended = ends.setdefault(id, asyncio.Event())
        task.add_done_callback(lambda _task: ended.set())
        return number, task

    async def title_in_turn(ctx: dict[str, Any]) -> None:
        ended = ends.setdefault(ctx["metadata"]["chat_id"], asyncio.Event())
        # An answer that never began has no end.
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(ended.wait(), AIOHTTP_CLIENT_TIMEOUT)
        await title(ctx)

    put(application, "create_task", begin_and_tell)
    put(application, "background_tasks_handler", title_in_turn)


enforce()

# Only now: it takes the routes as they are. In the package, the name `main` is a command's.
application = import_module("open_webui.main")
take_turns(application)
app = application.app

__all__ = ["app"]
