"""Run commands: output in a log file, failures with the last lines, all of them ended on an interruption."""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from lab.settings import LabError, folder

SHOWN = 120
_running: set[subprocess.Popen[str]] = set()
_guard = threading.RLock()  # the handler of a signal may come while its own thread holds it
_ending = threading.Event()


def run(
    argv: Sequence[str | Path],
    *,
    log: str | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: str | None = None,
    check: bool = True,
    answer: float | None = None,
    timeout: float | None = None,
) -> str:
    """Run a command and return its standard output.

    Args:
        argv: the command.
        log: name of a log file that takes both outputs; the returned text is empty then.
        cwd: the working folder.
        env: variables set for it, besides this process's own.
        stdin: text for its standard input.
        check: whether an exit code other than 0 is an error.
        answer: seconds after which it is ended if it has said nothing; not with ``log``.
        timeout: seconds after which it is ended.

    Raises:
        LabError: it failed, is not installed or took too long.
    """
    words = [str(word) for word in argv]
    target = (folder("logs") / f"{log}.log").open("a") if log else None
    try:
        pipe = target or subprocess.PIPE
        feed = subprocess.DEVNULL if stdin is None else subprocess.PIPE
        # As a context of its own it closes its pipes, also where it is ended early.
        with command(words, stdin=feed, stdout=pipe, stderr=pipe, cwd=cwd, env=env) as process, process:
            try:
                if answer is not None:
                    await_answer(process, answer)
                out, err = process.communicate(stdin, timeout=timeout)
            except subprocess.TimeoutExpired as late:
                end(process)
                lacking = "answer" if late.timeout == answer else "end"
                raise LabError(f"{shlex.join(words)}: no {lacking} after {late.timeout:.0f} s") from late
    finally:
        if target:
            target.close()
    if check and process.returncode:
        raise LabError(failure(words, process.returncode, out, err, log))
    return out or ""


def await_answer(process: subprocess.Popen[str], seconds: float) -> None:
    """Wait until a command has said something, or has ended.

    Raises:
        subprocess.TimeoutExpired: it has done neither in time.
    """
    if not (process.stdout and select.select([process.stdout], [], [], seconds)[0]):
        raise subprocess.TimeoutExpired(process.args, seconds)


@contextmanager
def command(
    words: Sequence[str],
    *,
    stdin: int | IO[str] = subprocess.DEVNULL,
    stdout: int | IO[str] | None = None,
    stderr: int | IO[str] | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[str]]:
    """Start a command that an interruption ends while this lasts; see ``subprocess.Popen`` for the arguments."""
    # Started and noted in one: an interruption between the two would leave it behind.
    with _guard:
        if _ending.is_set():
            raise LabError(f"{words[0]}: not started, the lab is stopping")
        try:
            process = subprocess.Popen(
                words,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd,
                env={**os.environ, **(env or {})},
                text=True,
                start_new_session=True,
            )
        except FileNotFoundError as err:
            raise LabError(f"{words[0]}: no such command on this machine") from err
        _running.add(process)
    try:
        yield process
    finally:
        with _guard:
            _running.discard(process)


def stream(argv: Sequence[str]) -> int:
    """Run a command whose output goes where this process's does; returns its exit code."""
    with command(argv) as process:
        return process.wait()


def failure(words: list[str], code: int, out: str | None, err: str | None, log: str | None) -> str:
    """The text of a failed command: what, exit code, the end of its output."""
    text = f"{out or ''}\n{err or ''}"
    where = ""
    if log:
        path = folder("logs") / f"{log}.log"
        text = path.read_text(errors="replace")
        where = f"\n  all of its output: {path}"
    tail = "\n".join(f"  | {line}" for line in text.strip().splitlines()[-12:])
    return f"{shlex.join(words)[:300]}: exit {code}\n{tail}{where}"


def last_line(error: LabError) -> str:
    """The end of what a failed command had to say."""
    line = str(error).splitlines()[-1].strip(" |")
    return line if len(line) <= SHOWN else f"...{line[-SHOWN:]}"


def end(process: subprocess.Popen[str]) -> None:
    """End a command and what it started."""
    try:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(10)
    except ProcessLookupError:
        return
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def end_all() -> None:
    """End every command under way; none is started after this."""
    _ending.set()
    with _guard:
        processes = list(_running)
    for process in processes:
        end(process)


def docker(*argv: str, check: bool = True, stdin: str | None = None, timeout: float | None = 120) -> str:
    """Run ``docker`` and return its output."""
    return run(["docker", *argv], check=check, stdin=stdin, timeout=timeout)
