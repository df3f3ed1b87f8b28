"""What the page of containers says about images is what the formulas pull."""

from __future__ import annotations

import re

import yaml

from tests.conftest import CHECKOUT


def pinned() -> dict[str, str]:
    """By what each formula's image is pinned, by its pillar key."""
    found = {}
    for path in CHECKOUT.glob("salt/*/defaults.yaml"):
        name = path.parent.name
        settings = yaml.safe_load(path.read_text()).get(name) or {}
        for key, row in {name: settings, f"{name}.container": settings.get("container") or {}}.items():
            if "image" in row:
                found[key] = "digest" if row["digest"] else "version, and its first pull"
    return found


def test_the_page_says_which_images_have_a_digest_and_which_have_none():
    page = (CHECKOUT / "docs/containers.md").read_text()
    assert (
        dict(re.findall(r"^\| `([a-z.]+)` \| (digest|version, and its first pull) \|$", page, re.MULTILINE)) == pinned()
    )
