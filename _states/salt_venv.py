"""Salt's own Python environment."""

from __future__ import annotations

from typing import Any

from aiplatform.states import converge, diff


def installed(
    name: str,
    requirements: str,
    python: str = "python3",
    wheelhouse: str = "",
    without: list[str] | None = None,
    build: list[str] | None = None,
) -> dict[str, Any]:
    """Make sure that exactly the locked packages are in use at a path.

    name
        The path.
    requirements
        Lock file with hashes, a ``salt://`` URL.
    python
        The interpreter to make the environment with.
    wheelhouse
        URL or folder that holds the packages; empty for the index that pip is configured with.
    without
        Names of packages to leave out.
    build
        Names of packages that exist as source only.

    .. code-block:: yaml

        /opt/salt:
          salt_venv.installed:
            - requirements: salt://salt_minion/files/requirements.txt
            - without: [timelib]
            - build: [salt]
    """
    packages = {"requirements": requirements, "python": python, "without": without}
    return converge(
        name,
        plan=lambda: diff(
            {"digest": __salt__["salt_venv.installed"](name)}, {"digest": __salt__["salt_venv.wanted"](**packages)}
        ),
        apply=lambda: __salt__["salt_venv.install"](name, wheelhouse=wheelhouse, build=build, **packages),
        test=__opts__["test"],
    )
