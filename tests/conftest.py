"""What every test tier shares."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import salt.config  # noqa: F401  (Salt replaces the root logger's handlers when it is first imported)

logging.root.handlers.clear()

CHECKOUT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of this checkout."""
    return CHECKOUT


@pytest.fixture(scope="session")
def salt_factories_default_root_dir(tmp_path_factory) -> Path:
    """Each run has daemons of its own, in a folder of its own."""
    return tmp_path_factory.mktemp("salt")
