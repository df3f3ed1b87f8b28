"""The reference of all settings is what the formulas say."""

from __future__ import annotations

import importlib.util

from aiplatform import settings
from tests.conftest import CHECKOUT

SPEC = importlib.util.spec_from_file_location("generate_pillar", CHECKOUT / "docs/generate_pillar.py")
generate = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(generate)


def test_the_page_is_current():
    wanted = generate.page(CHECKOUT / "salt")
    assert (CHECKOUT / "docs/pillar.md").read_text() == wanted, "run python docs/generate_pillar.py"


def test_every_key_has_a_row_with_its_default_and_meaning():
    page = generate.page(CHECKOUT / "salt")
    assert '| `platform.domain` | `"example.com"` | text (domain) | The site\'s DNS domain. |' in page
    assert '| `ollama.source` | `"https://github.com/ollama/' in page
    assert "| `preflight.data_root_free_gb` | `500` | number |" in page
    assert "| `platform.hosts.<name>.address` |  | text (address) |" in page
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert all(line.rstrip("| ").count("|") >= 3 for line in rows)


def test_every_key_has_a_meaning():
    rows = [line for line in generate.page(CHECKOUT / "salt").splitlines() if line.startswith("| `")]
    assert [line for line in rows if line.endswith("|  |")] == []


def test_the_proxys_page_says_the_defaults_of_a_site():
    defaults = settings.read_yaml(CHECKOUT / "salt/nginx/defaults.yaml")["nginx"]["site"]
    table = (CHECKOUT / "docs/nginx.md").read_text().split("| setting of a site |")[1].split("\n\n")[0]
    said = {}
    for line in table.splitlines()[2:]:
        names, values = (cell.strip() for cell in line.split("|")[1:3])
        said |= zip(names.replace("`", "").split(", "), values.split(", "), strict=True)
    none = {"sign_in": "none", "authority": "Vault's"}
    assert said == {key: none[key] if value is None else str(value).lower() for key, value in defaults.items()}
