"""The example of a site without the Internet is a pillar that is accepted, and leaves nothing to fetch elsewhere."""

from __future__ import annotations

import re

import yaml

from aiplatform import schema, settings
from tests.conftest import CHECKOUT

TREE = CHECKOUT / "salt"
SITE = "192.0.2.10"


def pillar():
    text = (CHECKOUT / "docs/offline.md").read_text()
    example = yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL).group(1))
    hosts = {"ai_server": {"address": "192.0.2.100", "roles": ["ai_server"]}}
    return example | {"platform": {"domain": "example.com", "hosts": hosts}}


def test_the_example_is_accepted():
    merged = settings.effective(pillar(), TREE)
    assert [str(problem) for problem in schema.problems(merged, TREE, written=pillar())] == []


def test_everything_comes_from_the_site():
    merged = settings.effective(pillar(), TREE)
    models = [*merged["benchmark"]["baseline_models"], *merged["benchmark"]["candidate_models"]]
    sources = [merged["ollama"]["source"], merged["vault"]["source"], merged["salt_minion"]["wheelhouse"], *models]
    assert [source for source in sources if SITE not in source] == []
    assert merged["ollama"]["checksums"] is None
    assert merged["ollama"]["version"] in merged["ollama"]["hashes"]
