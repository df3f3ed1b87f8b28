"""What the tests do inside the virtual machine, as root: one JSON a line through its second serial port, one back.

``{"shell": LINE}``, ``{"ask": [PORT, PATH, BODY]}`` (Ollama), ``{"numa": FUNCTION, "arguments": {...}}``: the
platform's module `numa`. For that this is a stand-in for Salt's loader: it gives the module the pillar that the units
were rendered from, `service.show` from systemctl, and a class to derive its errors from. A whole Salt takes an emulated
processor too long.
"""

import http.client
import importlib.util
import json
import os
import subprocess
import sys
import tty
from pathlib import Path
from types import ModuleType

PLATFORM = Path("/opt/platform")
LOAD_SECONDS = 280


def shell(line: str) -> dict:
    """Run a shell's command line."""
    done = subprocess.run(["/bin/sh", "-c", line], capture_output=True, text=True, check=False)
    return {"code": done.returncode, "out": done.stdout, "err": done.stderr}


def ask(port: int, path: str, body: dict) -> dict:
    """Send a request to an instance."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=LOAD_SECONDS)
    connection.request("POST", path, json.dumps(body))
    return json.load(connection.getresponse())


def show(unit: str) -> dict:
    """What Salt's `service.show` gives."""
    return dict(line.split("=", 1) for line in shell(f"systemctl show {unit}")["out"].splitlines() if "=" in line)


def module_numa() -> ModuleType:
    """The platform's module, as Salt's loader would give it."""
    sys.modules["salt"], sys.modules["salt.exceptions"] = ModuleType("salt"), ModuleType("salt.exceptions")
    sys.modules["salt.exceptions"].CommandExecutionError = Exception
    sys.path.insert(0, str(PLATFORM / "_utils"))
    spec = importlib.util.spec_from_file_location("numa", PLATFORM / "_modules/numa.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.__pillar__ = json.loads((PLATFORM / "pillar.json").read_text())
    module.__salt__ = {"service.show": show}
    return module


def answer(request: dict, numa: ModuleType) -> dict:
    """Do what is asked."""
    if "shell" in request:
        return shell(request["shell"])
    try:
        if "ask" in request:
            return {"return": ask(*request["ask"])}
        return {"return": getattr(numa, request["numa"])(**request["arguments"])}
    except Exception as err:  # noqa: BLE001 (every failure is the answer)
        return {"error": f"{type(err).__name__}: {err}"}


def main() -> None:
    """Answer until the machine is switched off."""
    port = os.open("/dev/ttyS1", os.O_RDWR | os.O_NOCTTY)
    tty.setraw(port)
    numa = module_numa()
    with os.fdopen(port, "rb", buffering=0) as lines, os.fdopen(os.dup(port), "wb") as out:
        out.write(b'{"ready": true}\n')
        out.flush()
        for line in lines:
            out.write(json.dumps(answer(json.loads(line), numa)).encode() + b"\n")
            out.flush()


main()
