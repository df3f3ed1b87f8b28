"""The commands of ``python -m lab``; the Makefile calls them."""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
from types import FrameType

from lab import artifacts, deploy, images, machine, models, status, summary, topology
from lab.process import end_all
from lab.settings import LabError
from lab.steps import Step, elapsed, lock, note, run_stages

INTERRUPTED = 130


def main() -> int:
    """Parse the command line and run the command."""
    parser = argparse.ArgumentParser(prog="python -m lab", description="Five hosts on one machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="raise the hosts and deploy the platform to them")
    up.add_argument("--no-deploy", action="store_true", help="stop when the hosts and Salt are ready")
    commands.add_parser("artifacts", help="get the servers and models that the hosts and the tests use")
    commands.add_parser("down", help="remove the hosts; the cache stays")
    commands.add_parser("status", help="what each host is, does and uses")
    shell = commands.add_parser("shell", help="a root shell on a host")
    shell.add_argument("host")
    command = commands.add_parser("exec", help="run a command on a host")
    command.add_argument("host")
    command.add_argument("words", nargs=argparse.REMAINDER, metavar="-- command")
    restart = commands.add_parser("restart", help="reboot a host and wait until it is up")
    restart.add_argument("host")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, interrupted)
    try:
        return run_command(args)
    except LabError as err:
        note(f"\n{err}")
        return 1
    except KeyboardInterrupt:
        end_all()
        note("\nInterrupted. Nothing is half done that make lab would not take up again; make lab-down removes it.")
        return INTERRUPTED


def interrupted(_number: int, _frame: FrameType | None) -> None:
    """A termination is an interruption."""
    raise KeyboardInterrupt


def run_command(args: argparse.Namespace) -> int:
    """Run one command; returns the exit code."""
    if args.command == "up":
        return up(args.no_deploy)
    if args.command == "artifacts":
        return get_artifacts()
    if args.command == "down":
        return down()
    if args.command == "status":
        print(status.table())
        return 0
    host = topology.host(args.host)
    if args.command == "restart":
        topology.restart(host)
        return 0
    words = ["bash", "-l"] if args.command == "shell" else [word for word in args.words if word != "--"]
    flags = ["-it"] if sys.stdin.isatty() else ["-i"]
    return subprocess.run(["docker", "exec", *flags, host.container, *words], check=False).returncode


def artifact_stage() -> list[Step]:
    """What is downloaded or built, side by side."""
    return [images.wheels_step(), *map(artifacts.step, artifacts.ALL), models.base_step()]


def up(no_deploy: bool) -> int:
    """``lab up``."""
    stages = [
        [Step("container engine", do=machine.start_engine, fresh=machine.engine_fresh)],
        artifact_stage(),
        [models.variants_step(), images.step()],
        [Step("hosts", do=topology.make_hosts, fresh=topology.hosts_fresh)],
        [Step("site's servers", do=deploy.start_site, fresh=deploy.site_fresh)],
        [Step("checkout on the master", do=deploy.sync_project, fresh=deploy.project_fresh), models.push_step()],
        [Step("Salt keys", do=deploy.enrol, fresh=deploy.salt_fresh)],
    ]
    if not no_deploy:
        stages.append([Step("deploy", do=deploy.deploy)])
    with lock("up"):
        seconds = run_stages(stages)
        print(summary.text(deployed=not no_deploy))
    print(f"The lab is up after {elapsed(seconds)}.")
    return 0


def get_artifacts() -> int:
    """``lab artifacts``: no engine and no hosts are needed for it."""
    with lock("artifacts"):
        seconds = run_stages([artifact_stage(), [models.variants_step()]])
    print(f"Artifacts are ready after {elapsed(seconds)}.")
    return 0


def down() -> int:
    """``lab down``."""
    with lock("down"):
        if not machine.engine_answers():
            print("No container engine answers: there is nothing to remove.")
            return 0
        print(topology.down())
        print(machine.stop_engine())
    return 0
