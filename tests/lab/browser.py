"""A person's browser: Chromium on the workstation, driven from the tests' machine through its WebDriver port."""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.common.exceptions import TimeoutException, WebDriverException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from aiplatform.wait import until
from lab.settings import address, cache

PACKAGES = "chromium chromium-driver fonts-dejavu-core"
ARCHIVES = "/var/cache/apt/archives"
PORT = 9515
UNIT = "browser-driver"
POLICY = "/etc/chromium/policies/managed/ai-platform.json"
SCREENSHOTS = Path(__file__).parents[1] / "artifacts" / "screenshots"
# Seconds that a person would wait for a page. Seconds for more of an answer: the chat's own words around a document are
# some hundred tokens, which takes a model 40 s on one of the lab's CPUs, and more where other tests are at work.
PAGE, ANSWER = 40, 240


def install(workstation) -> None:
    """Install Debian's Chromium; its packages are downloaded once and kept in the lab's cache."""
    if workstation.run("command -v chromedriver chromium", check=False).returncode == 0:
        return
    kept = cache() / "browser"
    if kept.is_dir():
        docker("cp", f"{kept}/.", f"{workstation.container}:{ARCHIVES}/")
    workstation.run(
        "export DEBIAN_FRONTEND=noninteractive; apt-get -qq update && "
        f"apt-get -qq -y install --no-install-recommends {PACKAGES} >/dev/null && apt-get autoclean >/dev/null",
        timeout=600,
    )
    kept.mkdir(parents=True, exist_ok=True)
    docker("cp", f"{workstation.container}:{ARCHIVES}/.", str(kept))


def docker(*argv: str) -> None:
    """Run Docker."""
    subprocess.run(["docker", *argv], check=True, capture_output=True, timeout=300)


def trust(workstation, authority: str) -> None:
    """Have Chromium trust the platform's authority by policy, as a site's administrator would."""
    der = base64.b64encode(ssl.PEM_cert_to_DER_cert(authority)).decode()
    policy = json.dumps({"CACertificates": [der]})
    workstation.run(f"mkdir -p $(dirname {POLICY}) && cat > {POLICY} <<'POLICY'\n{policy}\nPOLICY")


def start_driver(workstation) -> None:
    """Start the WebDriver server as a person of the host, open to the tests' machine alone."""
    stop_driver(workstation)
    workstation.run(
        f"systemd-run --quiet --collect --unit={UNIT} --uid=admin chromedriver --port={PORT} --allowed-ips={address(1)}"
    )
    ready = f"curl -s http://127.0.0.1:{PORT}/status"
    until(lambda: '"ready":true' in workstation.run(ready, check=False).stdout, 30, 0.2, "the browser's driver")


def stop_driver(workstation) -> None:
    """Stop it, and the browsers with it."""
    workstation.run(f"systemctl stop {UNIT} 2>/dev/null", check=False)


class Browser:
    """One browser with a fresh profile: a person at the workstation."""

    def __init__(self) -> None:
        options = webdriver.ChromeOptions()
        for argument in ("--headless=new", "--window-size=1280,900", "--disable-dev-shm-usage", "--lang=en-US"):
            options.add_argument(argument)
        self.driver = webdriver.Remote(f"http://{address(50)}:{PORT}", options=options)
        self.driver.set_page_load_timeout(PAGE)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_) -> None:
        self.driver.quit()

    def find(self, selector: str, seconds: float = PAGE) -> WebElement:
        """Return the element at a CSS selector, or at an XPath, once it is shown."""
        by = By.XPATH if selector.startswith("//") else By.CSS_SELECTOR
        return self.until(lambda: self.driver.find_element(by, selector), selector, seconds, WebElement.is_displayed)

    def click(self, selector: str) -> None:
        """Click an element as soon as it takes a click."""
        self.until(lambda: self.find(selector).click() or True, f"a click on {selector}")

    def reads(self, *words: str, seconds: float = PAGE) -> str:
        """Wait until the page shows one of these texts; returns all that it shows."""
        return self.until(self.text, " or ".join(words), seconds, lambda text: any(word in text for word in words))

    def text(self) -> str:
        """Return what the page shows."""
        return self.driver.find_element(By.TAG_NAME, "body").text

    def until(self, get, what: str, seconds: float = PAGE, good=bool):
        """Wait for something of the page, which may be drawn anew meanwhile."""

        def look(_):
            found = get()
            return found if good(found) else None

        wait = WebDriverWait(self.driver, seconds, 0.2, ignored_exceptions=(WebDriverException,))
        try:
            return wait.until(look)
        except TimeoutException:
            self.picture("failed")
            pytest.fail(f"no {what} after {seconds} s at {self.driver.current_url}:\n{self.text()[:800]}")

    def picture(self, name: str) -> None:
        """Keep a screenshot."""
        SCREENSHOTS.mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(SCREENSHOTS / f"{name}.png"))

    def identify(self, name: str, password: str) -> None:
        """Fill in Keycloak's page."""
        self.find("#username").send_keys(name)
        self.find("#password").send_keys(password)
        self.click("#kc-login")
