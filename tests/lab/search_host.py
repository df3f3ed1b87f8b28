"""Search one host for secrets. Runs on the host as root; the secrets come on standard input, their names go out.

Standard input: ``{"secrets": {name: value}, "places": [...], "seconds": N}``.
Standard output: ``[[name, place], ...]``. Only the standard library: this runs with the host's own Python.
"""

import base64
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

CHUNK = 1 << 20
LARGEST = 64 << 20
SKIPPED = ("/proc", "/sys", "/dev", "/srv/files", "/var/lib/docker", "/var/lib/docker-registry")


def needles(secrets):
    """The forms in which a secret may stand somewhere, as bytes."""
    forms = {}
    for name, value in secrets.items():
        raw = value.encode()
        forms[raw] = forms[base64.b64encode(raw).rstrip(b"=")] = name
    return forms


def search(stream, forms):
    """The names of the secrets in a stream."""
    found, tail = set(), b""
    longest = max(map(len, forms))
    while chunk := stream.read(CHUNK):
        text = tail + chunk
        found |= {name for form, name in forms.items() if form in text}
        tail = text[-longest:]
    return found


def in_file(path, forms):
    """The names of the secrets in a file; devices and what vanishes meanwhile hold none."""
    try:
        state = path.lstat()
        if not stat.S_ISREG(state.st_mode) or state.st_size > LARGEST:
            return set()
        with path.open("rb") as stream:
            return search(stream, forms)
    except OSError:
        return set()


def below(root, everybody=False):
    """The files below a folder; with ``everybody`` those that any user of the host can reach and read."""
    for name, folders, files in os.walk(root):
        folder = Path(name)
        folders[:] = [child for child in folders if str(folder / child) not in SKIPPED]
        if asked_for(folder) or (everybody and not mode(folder) & stat.S_IXOTH):
            folders[:] = []
            continue
        yield from (folder / file for file in files if not everybody or mode(folder / file) & stat.S_IROTH)


def asked_for(folder):
    """Whether this is a job by which a person asked Salt for a secret: its reply is kept, as the documentation says."""
    try:
        return b"vault.read_secret" in (folder / ".load.p").read_bytes()
    except OSError:
        return False


def mode(path):
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def files(paths, forms):
    return {(name, str(path)) for path in paths for name in in_file(path, forms)}


def journal(forms):
    """Every field of the journal, the command lines that it notes included."""
    with subprocess.Popen(["journalctl", "--output=export", "--no-pager"], stdout=subprocess.PIPE) as process:
        return {(name, "journal") for name in search(process.stdout, forms)}


def arguments(forms, seconds):
    """The command lines of all processes, again and again for some seconds."""
    found, end = set(), time.monotonic() + seconds
    while True:
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                text = path.read_bytes()
            except OSError:
                continue
            place = f"arguments of {text.split(bytes(1))[0].decode()}"
            found |= {(name, place) for form, name in forms.items() if form in text}
        if time.monotonic() >= end:
            return found
        time.sleep(0.02)


def main():
    order = json.load(sys.stdin)
    forms = needles(order["secrets"])
    kinds = {
        "everybody": lambda: files(below("/", everybody=True), forms),
        "logs": lambda: files(below("/var/log"), forms) | journal(forms),
        "cache": lambda: files(below("/var/cache/salt"), forms),
        "arguments": lambda: arguments(forms, order.get("seconds", 0)),
    }
    json.dump(sorted(set().union(*(kinds[place]() for place in order["places"]))), sys.stdout)


main()
