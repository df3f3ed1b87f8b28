"""The commands of ``python -m lab``; the Makefile calls them."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from dataclasses import replace
from types import FrameType

from lab import artifacts, containers, deploy, images, machine, models, packages, status, summary, topology
from lab.process import end_all
from lab.settings import LabError, standing
from lab.steps import Step, elapsed, lock, note, run_steps

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
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupted)
    try:
        return run_command(args)
    except (LabError, OSError) as err:
        note(f"\n{err}")
        return 1


def interrupted(_number: int, _frame: FrameType | None) -> None:
    """End what is under way and this process with it; waiting for threads that compute could take minutes."""
    end_all()
    os.write(2, b"\nInterrupted. The next make lab carries on from here; make lab-down removes what there is.\n")
    os._exit(INTERRUPTED)


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
    topology.demand(host)
    if args.command == "restart":
        topology.restart(host)
        return 0
    words = ["bash", "-l"] if args.command == "shell" else args.words
    if words[:1] == ["--"]:
        words = words[1:]  # ends the lab's own; a further one is the command's
    flags = ["-it"] if sys.stdin.isatty() else ["-i"]
    return subprocess.run(["docker", "exec", *flags, host.container, *words], check=False).returncode


def artifact_steps() -> list[Step]:
    """What the hosts need that is downloaded, built or computed; it needs no engine and no hosts."""
    base = models.base_step()
    return [
        images.wheels_step(),
        *map(artifacts.step, artifacts.ALL),
        base,
        replace(models.variants_step(), needs=(base.title,)),
        models.embedding_step(),
    ]


def steps(no_deploy: bool) -> list[Step]:
    """All that ``lab up`` does."""
    engine = Step("container engine", do=machine.start_engine, fresh=machine.engine_fresh)
    built = artifact_steps()
    image = replace(images.step(), needs=(engine.title, images.wheels_step().title))
    # Early, since it may be refused.
    network = Step("network", do=topology.make_network, fresh=topology.network_fresh, needs=(engine.title,))
    needs: tuple[str, ...] = (image.title, network.title)
    hosts = Step("hosts", do=topology.make_hosts, fresh=topology.hosts_fresh, needs=needs)
    site = Step("site's servers", do=deploy.start_site, fresh=deploy.site_fresh, needs=(hosts.title,))
    boxes = [replace(containers.step(image), needs=(site.title, *image.needs)) for image in containers.ALL]
    # The pillar carries the artifacts' hashes and the images' digests.
    needs = (site.title, *(step.title for step in (*built, *boxes)))
    checkout = Step("checkout on the master", do=deploy.sync_project, fresh=deploy.project_fresh, needs=needs)
    push = replace(models.push_step(), needs=needs)
    ssh = Step("ssh to the bare server", do=deploy.authorise, fresh=deploy.ssh_fresh, needs=(hosts.title,))
    keys = Step("Salt keys", do=deploy.enrol, fresh=deploy.salt_fresh, needs=(checkout.title,))
    last = Step("deploy", do=deploy.deploy, needs=(keys.title, push.title, ssh.title))
    return [
        engine,
        network,
        *built,
        image,
        hosts,
        site,
        *boxes,
        checkout,
        push,
        ssh,
        keys,
        *([] if no_deploy else [last]),
    ]


def up(no_deploy: bool) -> int:
    """``lab up``."""
    machine.check_engine()
    machine.ensure_commands({"git": "git", "ip": "iproute2"}, "The lab")
    with lock("up"):
        seconds = run_steps(steps(no_deploy))
        print(summary.text(deployed=not no_deploy))
    print(f"The lab is up after {elapsed(seconds)}.")
    return 0


def get_artifacts() -> int:
    """``lab artifacts``: all of that, and the servers that only tests use."""
    with lock("artifacts"):
        seconds = run_steps([*artifact_steps(), packages.step(), packages.keycloak_step()])
    print(f"Artifacts are ready after {elapsed(seconds)}.")
    return 0


def down() -> int:
    """``lab down``."""
    with lock("down"):
        if not machine.engine_answers():
            if not standing().exists():
                print("No container engine answers, and no lab was raised: there is nothing to remove.")
                return 0
            # The machine has been started anew since.
            print(machine.start_engine())
        print(topology.down())
        images.remove_builders()
        print(machine.stop_engine())
    return 0
