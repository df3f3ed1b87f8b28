"""The lab's hosts, as the lab's tests have them."""

from tests.lab.conftest import *  # noqa: F403 (its fixtures)
