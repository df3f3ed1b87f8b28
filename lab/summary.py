"""What a person sees when the lab is up: addresses, URLs, slots, what to try next."""

from __future__ import annotations

from lab.deploy import TARGET, urls
from lab.status import text_table
from lab.topology import HOSTS, MASTER, execute


def text(deployed: bool) -> str:
    """The whole summary."""
    parts = [text_table([["host", "address"], *([host.name, host.address] for host in HOSTS)])]
    parts.append(f"Artifacts and models: {urls()}")
    if deployed:
        parts.append(deployed_text())
    parts.append(commands(deployed))
    return "\n\n" + "\n\n".join(parts) + "\n"


def deployed_text() -> str:
    """The services and slots, as the platform's own status tells them."""
    return execute(MASTER, "salt-run", "ai_platform.status", check=False).strip()


def commands(deployed: bool) -> str:
    """Commands to try next."""
    lines = ["Next:", "  make lab-status", "  make lab-shell HOST=ai_server"]
    ask = "python -m lab exec salt_master --"
    lines.append(f"  .venv/bin/{ask} salt '*' test.ping")
    if deployed:
        body = '{"model": "slot-1", "prompt": "What is the capital of France?", "options": {"num_predict": 24}}'
        lines.append(f"  .venv/bin/{ask} curl -s http://{HOSTS[2].address}:11434/api/generate -d '{body}'")
        lines.append(f"  .venv/bin/{ask} salt-run ai_platform.status")
    else:
        lines.append(f"  .venv/bin/{ask} salt-run ai_platform.deploy")
    lines.append(f"  the checkout on the master: {TARGET}; take this one there again with: make lab")
    return "\n".join(lines)
