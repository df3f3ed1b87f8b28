"""The platform's rules inside Open WebUI, before names of its own that only remember what they were asked."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import sys
import time
from datetime import timedelta
from types import ModuleType, SimpleNamespace

import pytest

from tests.conftest import CHECKOUT
from tests.lab.hostile import LOAD, OPTIONS, UNPIN
from tests.lab.test_chat import MODEL

HOUR = 3600


class Refused(Exception):
    def __init__(self, code, detail=""):
        self.status_code = code
        super().__init__(detail)


class Person(SimpleNamespace):
    def model_copy(self, *, update):
        return Person(**{**vars(self), **update})


class Upstream:
    """Open WebUI, as far as the rules know it: modules by name, accounts, and what reached Ollama."""

    def __init__(self) -> None:
        self.accounts = {"1": Person(id="1", role="user", oauth={"oidc": {"sub": "7"}})}
        self.sent: list[dict] = []
        self.ended: list[str] = []
        self.did: list[str] = []
        self.modules: dict[str, ModuleType] = {}
        self.put(
            "fastapi", HTTPException=Refused, status=SimpleNamespace(HTTP_403_FORBIDDEN=403, HTTP_401_UNAUTHORIZED=401)
        )
        self.put("open_webui.main", app="the application", create_task=self.begin, background_tasks_handler=self.title)
        self.put("open_webui", main="a command")
        self.put("open_webui.config", JWT_EXPIRES_IN="12h")
        self.put("open_webui.constants", ERROR_MESSAGES=SimpleNamespace(ACCESS_PROHIBITED="no"))
        self.put("open_webui.env", AIOHTTP_CLIENT_TIMEOUT=0.2)
        self.put("open_webui.models")
        self.put("open_webui.models.users", Users=self)
        routes = [SimpleNamespace(path=path) for path in ("/api/chat", "/api/pull", "/api/pull/{url_idx}")]
        self.put(
            "open_webui.routers.ollama",
            send_request=self.send,
            get_ollama_url=self.choose,
            validate_ollama_backend_idx=self.check,
            router=SimpleNamespace(routes=routes),
        )
        self.put("open_webui.routers.auths", invalidate_token=None)
        self.put("open_webui.routers", ollama=self["routers.ollama"], auths=self["routers.auths"])
        self.put(
            "open_webui.utils.auth",
            create_signin_response=self.sign_in,
            get_current_user_by_api_key=self.get_user_by_id,
            decode_token=lambda token: {"id": token} if token in self.accounts else None,
            is_valid_token=self.counts,
            revoke_user_tokens=self.end,
        )
        self.put("open_webui.utils.misc", parse_duration=lambda text: timedelta(hours=int(text[:-1])))
        self.put(
            "open_webui.utils.oauth",
            OAuthManager=type("OAuthManager", (), {"get_user_role": print}),
            _get_claim=lambda claims, name: claims.get(name),
            get_oauth_runtime_config=self.config,
        )
        self.put("open_webui.utils", auth=self["utils.auth"], oauth=self["utils.oauth"])

    def __getitem__(self, name: str) -> ModuleType:
        return self.modules[f"open_webui.{name}"]

    def put(self, name: str, **content) -> None:
        self.modules[name] = ModuleType(name)
        vars(self.modules[name]).update(content)

    async def config(self):
        return SimpleNamespace(
            OAUTH_ROLES_CLAIM="roles", OAUTH_ADMIN_ROLES=["ai-admin"], OAUTH_ALLOWED_ROLES=["ai-user", "ai-admin"]
        )

    async def send(self, url, *, payload=None):
        self.sent.append({"url": url, "payload": payload})

    async def choose(self, request, model, number, user):
        return number

    async def check(self, request, model, number, user):
        if number is not None and user.role != "admin" and (model, number) != ("slot-1", 0):
            raise Refused(403)

    async def sign_in(self, request, user, **more):
        return {"token": user.id}

    async def counts(self, claims):
        return claims["id"] not in self.ended

    async def end(self, request, number):
        self.ended.append(number)

    async def begin(self, redis, coroutine, id=None, task_id=None):
        return task_id, asyncio.create_task(coroutine)

    async def title(self, ctx):
        self.did.append("title")

    async def get_user_by_id(self, *words):
        return self.accounts.get(words[-1])

    async def update_user_by_id(self, number, changes):
        vars(self.accounts[number]).update(changes)

    async def update_user_role_by_id(self, number, role):
        self.accounts[number].role = role


@pytest.fixture
def upstream(monkeypatch) -> Upstream:
    found = Upstream()
    for name, module in found.modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def started():
    """The rules as the container's command takes them."""
    file = CHECKOUT / "salt" / "openwebui" / "files" / "platform_app.py"
    spec = importlib.util.spec_from_file_location("platform_app", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(upstream, url: str, text: str) -> dict:
    """The body that reaches Ollama, as Ollama reads it: without regard to case, of several the last one."""
    asyncio.run(upstream["routers.ollama"].send_request(url, payload=json.dumps(json.loads(text))))
    body = json.loads(upstream.sent[-1]["payload"])
    return {key.replace("\u212a", "k").replace("\u017f", "s").lower(): value for key, value in body.items()}


@pytest.mark.parametrize("path", ["/api/chat", "/api/embed", "/v1/chat/completions", "/v1/messages"])
@pytest.mark.parametrize("member", [*UNPIN, *MODEL, *(f'"{key}":{{{",".join(LOAD)}}}' for key in OPTIONS)])
def test_no_spelling_unpins_reloads_or_names_another_model(upstream, path, member):
    started()
    body = asked(upstream, f"http://one:11434{path}", f'{{"model":"slot-1","messages":[],{member}}}')
    assert body.pop("options", {}) == {}
    assert body == {"model": "slot-1", "messages": []}


def test_what_does_not_load_stays(upstream):
    started()
    options = {"seed": 1, "temperature": 0.5, "num_predict": 2}
    body = {
        "model": "slot-1",
        "messages": [{"role": "user", "content": "keep_alive"}],
        "options": options,
        "think": False,
    }
    assert asked(upstream, "http://one:11434/api/chat", json.dumps(body)) == body


@pytest.mark.parametrize("payload", [None, "[]"])
def test_a_request_that_is_no_object_passes(upstream, payload):
    started()
    asyncio.run(upstream["routers.ollama"].send_request("http://one:11434/api/version", payload=payload))
    assert upstream.sent[-1]["payload"] == payload


def test_no_instance_is_chosen_by_the_one_who_asks_and_the_store_is_not_offered(upstream):
    started()
    assert asyncio.run(upstream["routers.ollama"].get_ollama_url(None, "slot-1", 1)) is None
    assert [route.path for route in upstream["routers.ollama"].router.routes] == ["/api/chat"]


@pytest.mark.parametrize("role", ["user", "admin"])
@pytest.mark.parametrize(("model", "number"), [("slot-1", 1), ("base:1b", 0), ("base:1b", 1)])
def test_an_instance_loads_nothing_that_it_does_not_offer_for_administrators_either(upstream, role, model, number):
    started()
    person = Person(id="2", role=role)
    check = upstream["routers.ollama"].validate_ollama_backend_idx
    asyncio.run(check(None, "slot-1", 0, person))
    asyncio.run(check(None, model, None, person))
    with pytest.raises(Refused):
        asyncio.run(check(None, model, number, person))
    assert person.role == role


def key_login(upstream):
    """Whom a key stands for, or how it is refused."""
    try:
        return asyncio.run(upstream["utils.auth"].get_current_user_by_api_key(None, "1")).id
    except Refused as err:
        return err.status_code


def test_a_key_counts_as_long_as_its_owners_sign_on(upstream):
    rules = started()
    assert key_login(upstream) == 401
    asyncio.run(upstream["utils.auth"].create_signin_response(None, upstream.accounts["1"], source="oauth"))
    assert key_login(upstream) == "1"
    assert upstream.accounts["1"].oauth["oidc"]["sub"] == "7"
    for hours, answer in ((11, "1"), (13, 401)):
        asyncio.run(rules.note_sign_on(upstream.accounts["1"], time.time() - hours * HOUR))
        assert key_login(upstream) == answer


def test_an_account_that_never_signed_on_has_no_key_that_counts(upstream):
    started()
    upstream.accounts["1"].oauth = None
    assert key_login(upstream) == 401


def role(upstream, user, claims):
    try:
        return asyncio.run(upstream["utils.oauth"].OAuthManager().get_user_role(user, claims))
    except Refused as err:
        return err.status_code


def test_whoever_is_refused_has_no_role_here_any_more(upstream):
    started()
    user = upstream.accounts["1"]
    assert role(upstream, user, {"roles": ["ai-admin"]}) == "admin"
    assert user.role == "user"
    assert role(upstream, user, {"roles": ["offline_access"]}) == 403
    assert user.role == "pending"
    assert role(upstream, None, {}) == 403


def test_signing_out_ends_the_sessions_of_a_token_that_counts(upstream):
    started()
    leave = upstream["routers.auths"].invalidate_token
    for token in ("made up", "1", "1"):
        asyncio.run(leave(None, token))
    assert upstream.ended == ["1"]


@pytest.mark.parametrize("how", ["answered", "failed", "stopped"])
def test_a_title_is_asked_for_when_the_answer_has_ended(upstream, how):
    main = (started(), upstream["main"])[1]

    async def answer():
        await asyncio.sleep(0.02)
        upstream.did.append("answer")
        if how == "failed":
            raise ConnectionError

    async def chat():
        title = asyncio.create_task(main.background_tasks_handler({"metadata": {"chat_id": "7"}}))
        other = asyncio.create_task(main.background_tasks_handler({"metadata": {"chat_id": "8"}}))
        _number, task = await main.create_task(None, answer(), id="7", task_id="1")
        await asyncio.sleep(0.01)
        if how == "stopped":
            upstream.did.append("answer")
            task.cancel()
        await asyncio.wait({task})
        await title
        assert not other.done()
        other.cancel()
        return task.cancelled() or task.exception()

    asyncio.run(chat())
    assert upstream.did == ["answer", "title"]


def test_a_title_whose_answer_never_began_is_asked_for_in_the_end(upstream):
    main = (started(), upstream["main"])[1]
    asyncio.run(main.background_tasks_handler({"metadata": {"chat_id": "7"}}))
    assert upstream.did == ["title"]


@pytest.mark.parametrize("name", ["create_task", "background_tasks_handler"])
def test_an_application_without_turns_does_not_start(upstream, name):
    delattr(upstream["main"], name)
    with pytest.raises(AttributeError, match=name):
        started()


@pytest.mark.parametrize("name", ["create_signin_response", "get_current_user_by_api_key"])
def test_a_version_without_one_of_the_names_does_not_start(upstream, name):
    delattr(upstream["utils.auth"], name)
    with pytest.raises(AttributeError, match=name):
        started()
