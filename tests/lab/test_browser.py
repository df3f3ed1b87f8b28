"""What people see: sign-on, a question, a document, signing out; and Vault's sign-on for administrators.

A real browser on the workstation, through the platform's names, its authority's TLS and its proxy.
"""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from functools import partial
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from aiplatform.wait import until
from tests.lab import browser
from tests.lab.test_chat import in_container

DOMAIN = "lab.internal"
CHAT = f"https://ollama-ui.{DOMAIN}/"
VAULT_PAGES = f"https://vault.{DOMAIN}/ui/"
PEOPLE = {"lab-user": ["ai-user"], "lab-admin": ["ai-admin"], "lab-nobody": []}
SECRET = "secret/ai-platform/openwebui"
CALLBACK = "http://localhost:8250/oidc/callback"
FILE = Path("/tmp/lighthouse.txt")
DOCUMENT = "The lighthouse of Marrow Point was painted green in 1931 by Ottoline Brask."

FORGET = """
import asyncio, sys
from open_webui.models.auths import Auths
from open_webui.models.users import Users

async def forget():
    found = [user for email in sys.argv[1:] if (user := await Users.get_user_by_email(email))]
    return [await Auths.delete_auth_by_id(user.id) for user in found]

print("FORGOTTEN", asyncio.run(forget()))
"""


@pytest.fixture(scope="module")
def desk(workstation, master):
    """The workstation with a browser that trusts the platform."""
    browser.install(workstation)
    browser.trust(workstation, master.salt("nginx_proxy", "platform_ca.certificate")["nginx_proxy"])
    browser.start_driver(workstation)
    workstation.run(f"echo {quoted(DOCUMENT)} > {FILE}")
    yield workstation
    browser.stop_driver(workstation)


@pytest.fixture(scope="module")
def passwords(ai_server):
    """One person a role, gone afterwards; their passwords by name."""
    found = {name: secrets.token_urlsafe(16) for name in PEOPLE}
    forget(ai_server)
    write(ai_server, {name: {"password": found[name], "roles": roles} for name, roles in PEOPLE.items()})
    yield found
    write(ai_server, dict.fromkeys(PEOPLE))
    forget(ai_server)


def forget(ai_server) -> None:
    """Take their accounts out of the chat, which knows a person by what Keycloak numbered them."""
    assert in_container(ai_server, FORGET, "FORGOTTEN", *(f"{name}@{DOMAIN}" for name in PEOPLE))


def write(ai_server, people: dict) -> None:
    script = Path(__file__).with_name("people.py").read_text()
    ai_server.run(f"/opt/salt/bin/python -W ignore -c {quoted(script)} <<'PEOPLE'\n{json.dumps(people)}\nPEOPLE")


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


@pytest.fixture
def person(desk, passwords):
    """A browser; ``enter(name)`` signs a person on to the chat."""
    with browser.Browser() as found:

        def enter(name: str) -> browser.Browser:
            found.driver.get(CHAT)
            found.click("//button[contains(., 'Continue with')]")
            found.find("#username")
            found.picture("sign-on")
            found.identify(name, passwords[name])
            return found

        found.enter = enter
        yield found


# The lab's models are small, and one may answer with a word, which is complete before it is looked at again, or with
# nothing (6 of 300): then another question is asked.
QUESTIONS = (
    "Write three sentences about a lighthouse keeper.",
    "Tell me a story about a ship.",
    "How is bread baked? Explain it step by step.",
    "Describe a walk through a forest.",
    "What is a mountain? Explain it in a few sentences.",
)
WORDS = 12
# A line of Ollama about a question from a container: when it was written, and how long the answer took.
ASKED = r'^(\d+\.\d+) .*\| 200 \| +(?:(\d+)m)?([\d.]+)(m?s) \| +172\.[\d.]+ \| POST +"/api/chat"'


def test_a_user_asks_and_reads_the_answer_as_it_comes(person, ai_server):
    page = person.enter("lab-user")
    for question in QUESTIONS:
        began = ai_server.run("date +%s.%N").stdout.strip()
        page.find("#chat-input").send_keys(question, Keys.ENTER)
        seen = answers(page)
        page.picture("answer")
        page.until(page.text, "title of the chat", browser.ANSWER, lambda text: "New Chat" not in text)
        asked = chats(ai_server, began)
        if len(" ".join(seen[-1:]).split()) >= WORDS and in_turn(asked):
            break
        page.driver.get(CHAT)
    assert len(seen) > 1, f"the answer came at once and not in a stream: {seen}"
    assert "not support" not in seen[-1]
    # A title at once with the answer may be generated first, and keep the person waiting.
    assert in_turn(asked), f"answer and title are not one after the other: {asked}"


def in_turn(asked: list[tuple[float, float]]) -> bool:
    """Whether these are an answer and its title, one after the other; tests beside this one may ask the chat, too."""
    return len(asked) == len(("answer", "title")) and asked[0][1] <= asked[1][0]


def chats(ai_server, since: str) -> list[tuple[float, float]]:
    """Begin and end, as Unix times, of what the chat asked models since then."""
    said = ai_server.run(["journalctl", "--output=short-unix", f"--since=@{since}", "--unit=ollama*"]).stdout
    found = []
    for end, minutes, number, unit in re.findall(ASKED, said, re.MULTILINE):
        seconds = 60 * float(minutes or 0) + float(number) * {"s": 1, "ms": 0.001}[unit]
        found.append((float(end) - seconds, float(end)))
    return sorted(found)


def test_a_user_finds_what_a_document_says_and_signs_out(person):
    page = person.enter("lab-user")
    upload(page)
    page.find("#chat-input").send_keys("Who painted the lighthouse of Marrow Point?", Keys.ENTER)
    answers(page)
    assert "lighthouse.txt" in cited(page)
    page.picture("document")
    assert "Admin Panel" not in menu(page)
    token = page.driver.get_cookie("token")["value"]
    assert ask(page, token)[0] == 200
    key = ask(page, token, "/api/v1/auths/api_key", "POST")[1]["api_key"]
    assert ask(page, key)[0] == 200, "a key does not count right after its owner's sign-on"
    page.click("//*[contains(text(), 'Sign Out')]")
    page.reads("Continue with", "signed out", "logged out")
    page.picture("signed-out")
    page.driver.get(CHAT)
    page.find("//button[contains(., 'Continue with')]")
    assert ask(page, token)[0] == 401, "a copy of the token still counts"
    # Keycloak asks who it is: its own session has ended too.
    page.click("//button[contains(., 'Continue with')]")
    page.find("#username")


def ask(page, token: str, path: str = "/api/models", method: str = "GET") -> tuple[int, dict]:
    """Status and answer of the chat for a session's token or a key; the page is one of the chat's."""
    script = """
        const [token, path, method, done] = arguments;
        fetch(path, {method, credentials: "omit", headers: {Authorization: "Bearer " + token}})
            .then(async reply => done([reply.status, await reply.json()]));
    """
    status, answer = page.driver.execute_async_script(script, token, path, method)
    return status, answer


def upload(page) -> None:
    """Give a new chat a document, and wait until it was read."""
    page.find("#chat-input")
    page.driver.find_element("css selector", "input[type=file]:not([accept])").send_keys(str(FILE))
    page.reads(FILE.name)


def cited(page) -> str:
    """What the page shows once the sources of the answer are opened."""
    page.click("//button[contains(., 'Source')]")
    return page.reads(FILE.name)


def answers(page) -> list[str]:
    """The texts of the answer as it grows, until it is complete; a busy machine may take long, but it has to grow."""
    seen: list[str] = []

    def complete() -> bool:
        return bool(page.driver.find_elements("css selector", "[aria-label='Regenerate']"))

    def more() -> bool:
        text = page.driver.find_element("css selector", ".chat-assistant").text.strip()
        if grown := bool(text) and text not in seen:
            seen.append(text)
        return grown or complete()

    while not complete():
        page.until(more, "complete answer nor more of one", browser.ANSWER)
    page.until(more, "answer that is complete")
    return seen


def menu(page) -> str:
    page.click("[aria-label='User menu']")
    return page.reads("Sign Out")


def test_an_administrator_administers(person):
    page = person.enter("lab-admin")
    # Administrators are told what is new in this version.
    page.click("//button[contains(., 'Okay')]")
    page.driver.get(f"{CHAT}admin/users")
    page.reads("lab-user", "lab-admin")
    page.picture("administrator")


def test_whoever_has_no_role_is_refused_and_told(person):
    page = person.enter("lab-nobody")
    page.reads("do not have permission")
    page.picture("refused")
    page.driver.get(CHAT)
    page.find("//button[contains(., 'Continue with')]")


# -- Vault: its command line, with the browser for Keycloak's part -------------------------------------------------


@pytest.fixture(scope="module")
def command_line(desk, master, ai_server):
    """``command_line(arguments, token)`` runs Vault's own program at the desk, as an administrator has it."""
    authority = "/etc/ssl/certs/vault-sign-on.pem"
    pem = master.salt("nginx_proxy", "platform_ca.certificate")["nginx_proxy"]
    desk.run(f"cat > {authority} <<'PEM'\n{pem}PEM")
    program = ai_server.run("readlink -f /opt/vault/current/vault").stdout.strip()
    copied = subprocess.run(
        ["docker", "cp", f"{ai_server.container}:{program}", "-"], check=True, capture_output=True, timeout=60
    )
    to = ["docker", "cp", "-", f"{desk.container}:/usr/local/bin"]
    subprocess.run(to, input=copied.stdout, check=True, capture_output=True, timeout=60)
    settings = f"export VAULT_ADDR=https://vault.{DOMAIN} VAULT_CACERT={authority}"

    def run(arguments: str, token: str):
        return desk.run(f"{settings} VAULT_TOKEN={token}; vault {arguments}", check=False)

    run.settings = settings
    yield run
    desk.run(f"rm -f /usr/local/bin/vault {authority}")


@pytest.fixture
def sign_in_to_vault(desk, command_line, passwords):
    """``sign_in(name)`` returns the exit code of ``vault login`` and what it said; a token on standard output."""
    out = "/tmp/vault-login"

    def sign_in(name: str) -> tuple[int, str]:
        login = "vault login -method=oidc -no-store -format=json skip_browser=true"
        script = f"umask 077; {command_line.settings}; {login} >{out}.out 2>{out}.err; echo $? >{out}.code"
        desk.run(f"rm -f {out}.*; systemd-run --quiet --collect --unit=vault-login sh -c {quoted(script)}")
        said = partial(desk.run, f"cat {out}.err", check=False)
        url = until(lambda: re.search(r"https://idm\S+", said().stdout), 20, 0.1, "the address to sign in at").group()
        with browser.Browser() as page:
            page.driver.get(url)
            page.identify(name, passwords[name])
            # The command line listens there, takes the code and shows its own page: welcome, or why not.
            page.until(lambda: page.driver.current_url, "way back", good=lambda url: url.startswith(CALLBACK))
            page.picture(f"vault-login-{name}")
        code = until(lambda: desk.run(f"cat {out}.code", check=False).stdout, 30, 0.1, "the end of vault login")
        reply = desk.run(f"cat {out}.out").stdout if int(code) == 0 else said().stdout
        desk.run(f"rm -f {out}.*")
        return int(code), reply

    return sign_in


def test_an_administrator_signs_in_to_vault_and_reads_a_secret(sign_in_to_vault, command_line):
    code, reply = sign_in_to_vault("lab-admin")
    assert code == 0, reply
    auth = json.loads(reply)["auth"]
    assert "vault-admin" in auth["policies"]
    assert auth["lease_duration"] == 4 * 3600
    read = partial(command_line, f"kv get -format=json {SECRET}", auth["client_token"])
    assert "secret_key" in json.loads(read().stdout)["data"]["data"]
    # And signs out.
    assert command_line("token revoke -self", auth["client_token"]).returncode == 0
    refused = read()
    assert (refused.returncode, "Code: 403" in refused.stderr) == (2, True)


def test_vaults_own_pages_let_an_administrator_in_and_out_again(desk, passwords):
    with browser.Browser() as page:
        page.driver.get(VAULT_PAGES)
        if "not available" in page.reads("Sign in to Vault", "Vault UI is not available"):
            pytest.skip("this Vault was built without its pages")
        page.click("select[name='selectedAuthMethod'] option[value='oidc']")
        page.click("//button[contains(., 'Sign in with')]")
        first = page.driver.current_window_handle
        page.until(lambda: len(page.driver.window_handles) == 2, "window of Keycloak's")
        page.driver.switch_to.window(next(name for name in page.driver.window_handles if name != first))
        page.identify("lab-admin", passwords["lab-admin"])
        # The window closes by itself.
        page.driver.switch_to.window(first)
        page.reads("Secrets engines")
        page.picture("vault")
        page.click("[aria-label='User menu']")
        page.click("#logout")
        page.reads("Sign in to Vault")


@pytest.mark.parametrize("name", ["lab-user", "lab-nobody"])
def test_nobody_else_signs_in_to_vault(sign_in_to_vault, name):
    code, reply = sign_in_to_vault(name)
    assert code == 2
    assert "/realm_access/roles" in reply


def test_a_second_set_up_changes_nothing(master):
    assert master.runner("vault_oidc.configure")["changes"] == {}
