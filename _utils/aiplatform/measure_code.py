"""What the code of an answer does: run in a unit that has nothing, against calls whose results are kept here.

The unit gets the code and the arguments, never the expected results: code that prints what it likes, ends the
interpreter or rewrites the harness can only fail. It has no network, sees no file but those of Python, can write
nowhere, and is bounded in time, memory, processes and output.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiplatform.errors import PlatformError

PYTHON = "/usr/bin/python3"
RUN = Path("/run")
LANGUAGES = frozenset({"", "py", "python", "python3"})
SECONDS = 10
# Starting and clearing away a unit on a busy host.
PATIENCE_SECONDS = 60
OUTPUT_BYTES = 1 << 20
_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL)
_ENDED = re.compile(r"Finished with result: (\S+)")
_TOLERANCE = 1e-9

# Each line is a property of systemd.exec(5), systemd.resource-control(5) or systemd.service(5). The root is an empty
# folder into which only what Python consists of is mounted: no /etc, no /proc, no /dev, nothing of any service.
PROPERTIES = (
    "DynamicUser=yes",
    "BindReadOnlyPaths=/usr",
    "BindReadOnlyPaths=-/lib",
    "BindReadOnlyPaths=-/lib64",
    "InaccessiblePaths=-/usr/local",
    "InaccessiblePaths=-/usr/share",
    "InaccessiblePaths=-/usr/src",
    "MountAPIVFS=no",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    # A dynamic user comes with a temporary folder of its own: not this one.
    "InaccessiblePaths=/tmp",
    "InaccessiblePaths=/var/tmp",
    "PrivateNetwork=yes",
    "RestrictAddressFamilies=AF_UNIX",
    "IPAddressDeny=any",
    "DevicePolicy=strict",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "RestrictNamespaces=yes",
    "RestrictSUIDSGID=yes",
    "RestrictRealtime=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged @resources @keyring @network-io",
    "SystemCallErrorNumber=EPERM",
    f"RuntimeMaxSec={SECONDS}",
    "TimeoutStopSec=1",
    "KillSignal=SIGKILL",
    "MemoryMax=256M",
    "MemorySwapMax=0",
    "TasksMax=16",
    # The same once more, for hosts whose control groups cannot bound them.
    "LimitAS=1G",
    "LimitNPROC=16",
    # Not at the same second as the unit's own end: which of them ended it would be chance.
    f"LimitCPU={2 * SECONDS}",
    "LimitNOFILE=64",
    "LimitCORE=0",
    f"LimitFSIZE={OUTPUT_BYTES}",
)

# Runs in the unit: defines what the answer defines, makes the calls, and says what came of each.
HARNESS = """
import io, json, os, sys
task = json.load(sys.stdin)
answer = os.fdopen(os.dup(1), "w")
sys.stdout = sys.stderr = io.StringIO()
space = {"__name__": "answer"}
for block in task["blocks"]:
    try:
        exec(compile(block, "<answer>", "exec"), space)
    except BaseException:
        pass
said = []
for arguments in task["calls"]:
    try:
        result = space[task["function"]](*arguments)
        said.append({"returned": result, "arguments": arguments})
    except BaseException as error:
        said.append({"raised": repr(error)[:200]})
try:
    text = json.dumps(said)
except (TypeError, ValueError) as error:
    text = json.dumps([{"raised": repr(error)[:200]}])
answer.write(text)
answer.flush()
os._exit(0)
"""


@dataclass(frozen=True)
class Verdict:
    """Whether an answer's code passed all hidden tests, and if not, why."""

    passed: bool
    why: str = ""


def blocks(text: str) -> list[str]:
    """Return the Python of an answer: its fenced blocks in that language or in none, else all of it."""
    fenced = _BLOCK.findall(text)
    return [code for language, code in fenced if language.lower() in LANGUAGES] if fenced else [text]


def command(root: str, cpus: Iterable[int] = ()) -> list[str]:
    """Return the command that runs the harness in its unit.

    root
        An empty folder, which becomes the unit's root.
    cpus
        The CPUs that it may use; none: any.
    """
    more = [f"RootDirectory={root}", *([f"CPUAffinity={' '.join(str(cpu) for cpu in cpus)}"] if cpus else [])]
    properties = [word for line in (*PROPERTIES, *more) for word in ("--property", line)]
    return ["systemd-run", "--wait", "--collect", "--pipe", *properties, "--", PYTHON, "-I", "-c", HARNESS]


def available() -> str:
    """Return why code cannot be run in units here; empty where it can."""
    if not Path("/run/systemd/system").is_dir():
        return "this host is not run by systemd"
    return "" if Path(PYTHON).exists() else f"{PYTHON} is not there"


def execute(tests: Mapping[str, Any], text: str, cpus: Sequence[int] = ()) -> Verdict:
    """Run an answer's code against hidden tests.

    tests
        Of a prompt of the suite: ``function``, and ``cases`` with ``args``, ``returns`` and, where the arguments must
        stay as they were, ``unchanged``.
    text
        The whole answer.
    cpus
        The CPUs that it may use.

    Raises ``PlatformError`` where the unit could not even be started: that says nothing about the code.
    """
    task = {"function": tests["function"], "blocks": blocks(text), "calls": [case["args"] for case in tests["cases"]]}
    # A file, not a pipe: its size is limited, and nobody has to read along.
    with (
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryDirectory(prefix="benchmark-code-", dir=RUN) as root,
    ):
        Path(root).chmod(0o755)
        asked.write(json.dumps(task).encode())
        asked.seek(0)
        try:
            done = subprocess.run(
                command(root, cpus), stdin=asked, stdout=said, stderr=subprocess.PIPE,
                timeout=SECONDS + PATIENCE_SECONDS, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired) as err:
            raise _unusable(str(err)) from err
        said.seek(0)
        output = said.read()
    if done.returncode and not output and b"Failed to" in done.stderr:
        raise _unusable(done.stderr.decode(errors="replace").strip())
    ended = _ENDED.search(done.stderr.decode(errors="replace"))
    return judge(tests["cases"], output, ended.group(1) if ended else f"status {done.returncode}")


def _unusable(actual: str) -> PlatformError:
    return PlatformError(
        "Answers' code cannot be run",
        where="a transient unit of systemd",
        actual=actual,
        hint="set benchmark:execute_code to false, and benchmark:scoring to markers",
    )


def judge(cases: Sequence[Mapping[str, Any]], output: bytes, ended: str) -> Verdict:
    """Return the verdict on what the harness said.

    ended
        How its unit ended: ``success``, or by what, such as ``timeout`` and ``oom-kill`` (systemd.exec(5), EXIT_CODE).
    """
    try:
        said = json.loads(output)
    except ValueError:
        nothing = "what the code said cannot be read" if output else "the code said nothing"
        return Verdict(False, nothing if ended == "success" else f"the test was ended by {ended}")
    if not isinstance(said, list) or len(said) != len(cases):
        return Verdict(False, "the code said something else")
    for case, one in zip(cases, said, strict=True):
        if why := _wrong(case, one):
            return Verdict(False, why)
    return Verdict(True)


def _wrong(case: Mapping[str, Any], said: Any) -> str:
    call = json.dumps(case["args"])[:80]
    if not isinstance(said, dict) or "returned" not in said:
        raised = said.get("raised") if isinstance(said, dict) else said
        return f"{call}: {raised}"
    if not same(case["returns"], said["returned"]):
        return f"{call}: returned {json.dumps(said['returned'])[:80]}, expected {json.dumps(case['returns'])[:80]}"
    if case.get("unchanged") and said.get("arguments") != case["args"]:
        return f"{call}: the argument was changed"
    return ""


def same(expected: Any, actual: Any) -> bool:
    """Return whether two JSON values are equal, numbers but for rounding."""
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(same, expected, actual))
    numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in (expected, actual)]
    if all(numbers):
        return math.isclose(expected, actual, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
    return type(expected) is type(actual) and bool(expected == actual)
