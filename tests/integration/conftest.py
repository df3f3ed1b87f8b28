"""A real master and three real minions on this machine, with the product's orchestration over harmless phases."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.conftest import CHECKOUT

HOSTS = ("ai_server", "nginx_proxy", "coredns_host")
ALL = list(HOSTS)
# Debug logs, the factories' own choice, cost more than the work.
QUIET = {"log_level": "warning", "log_level_logfile": "warning"}
GRAPH = {
    "preflight": {"roles": ALL, "needs": [], "steps": [{"state": "fake.preflight"}]},
    "vault": {
        "roles": ["ai_server"],
        "needs": ["preflight"],
        "steps": [{"state": "fake.vault"}, {"runner": "fake_runner.bootstrap"}],
    },
    "docker": {"roles": ["ai_server", "coredns_host"], "needs": ["preflight"], "steps": [{"state": "fake.docker"}]},
    "ollama": {"roles": ["ai_server"], "needs": ["vault"], "steps": [{"state": "fake.ollama"}]},
    "verify": {"always": True, "roles": ALL, "needs": ["docker", "ollama"], "steps": [{"state": "fake.verify"}]},
}
# Each phase writes when it begins and ends, fails where told to, and keeps one file in place.
PHASE = """\
{phase}-file:
  file.managed:
    - name: {site}/out/{phase}-{{{{ grains.id }}}}
    - contents: as wanted
    - makedirs: true
{phase}-work:
  cmd.script:
    - source: salt://fake/work.sh
    - args: {site} {phase} {{{{ grains.id }}}}
    - stateful: true
    - unless: test -e {site}/settled
"""
WORK = """\
#!/bin/sh
echo "$2 $3 begin $(date +%s.%N)" >> "$1/log"
while [ -e "$1/hold-$2" ]; do sleep 0.1; done
echo "$2 $3 end $(date +%s.%N)" >> "$1/log"
if [ -e "$1/fail-$2-$3" ]; then echo "$2 is broken" >&2; exit 1; fi
echo "changed=no"
"""
RUNNER = """\
from pathlib import Path

from aiplatform import settings


def bootstrap(test=False):
    assert settings.load(__opts__)["platform"]["hosts"]
    done = Path("{site}/out/bootstrap")
    changes = {{}} if done.exists() else {{"vault": "initialised"}}
    if changes and not test:
        done.write_text("")
    return {{"changes": changes, "comment": "as wanted"}}
"""


@dataclass
class Site:
    """The platform under test: its files, and the commands of an operator."""

    path: Path
    master: object
    minions: dict

    def deploy(self, **kwargs):
        """``salt-run ai_platform.deploy``: its data, the exit code among them."""
        done = self.run("ai_platform.deploy", **kwargs)
        assert done.returncode == done.data["retcode"]
        return done.data

    def run(self, *args, **kwargs):
        return self.master.salt_run_cli(timeout=180).run(*args, **kwargs)

    def log(self):
        """What the phases have done since the last call: (phase, host, begin or end, seconds)."""
        path = self.path / "log"
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        path.unlink(missing_ok=True)
        return [(phase, host, what, float(at)) for phase, host, what, at in lines]

    def seen(self, phase, host, what):
        """Whether a phase has begun, or ended, since the last call of ``log``."""
        path = self.path / "log"
        return path.exists() and f"{phase} {host} {what} " in path.read_text()

    def ran(self):
        """The phases and hosts that have worked since the last call."""
        return {(phase, host) for phase, host, *_ in self.log()}

    def fail(self, phase, host, broken=True):
        """Break a phase on a host, or mend it."""
        path = self.path / f"fail-{phase}-{host}"
        path.touch() if broken else path.unlink(missing_ok=True)

    def hold(self, phase, held=True):
        """Keep a phase from ending, or let it end."""
        path = self.path / f"hold-{phase}"
        path.touch() if held else path.unlink()

    def settle(self):
        """Have the phases make their files and nothing else, so that a dry run may find nothing to do."""
        (self.path / "settled").touch()

    def edit(self, **settings):
        """Write further settings into the operator's pillar, on one line."""
        text = yaml.safe_dump(settings, default_flow_style=True, width=10_000)
        (self.path / "pillar/more.sls").write_text(text)

    def record(self):
        """What the latest deploy, which failed, has left for the next one."""
        return json.loads(self._record.read_text())

    @property
    def _record(self):
        return Path(self.master.config["cachedir"]) / "ai_platform/deploy.json"

    def wipe(self):
        """Undo what the phases have made, and forget earlier deploys."""
        shutil.rmtree(self.path / "out", ignore_errors=True)
        (self.path / "out").mkdir()
        for path in (*self.path.glob("fail-*"), *self.path.glob("hold-*")):
            path.unlink()
        (self.path / "settled").unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)
        self.edit()
        self.log()


@pytest.fixture(scope="session")
def site_path(tmp_path_factory):
    """The state tree, pillar and runners of the site."""
    path = tmp_path_factory.mktemp("site")
    tree = path / "salt"
    (tree / "fake").mkdir(parents=True)
    (tree / "orch").mkdir()
    (tree / "orch/deploy.sls").symlink_to(CHECKOUT / "salt/orch/deploy.sls")
    graph = {name: {"about": name} | row for name, row in GRAPH.items()}
    (tree / "orch/phases.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    for folder in (CHECKOUT / "salt").iterdir():
        if folder.name.startswith("_") or (folder / "schema.yaml").exists():
            (tree / folder.name).symlink_to(folder.resolve())
    (tree / "fake/work.sh").write_text(WORK)
    for phase in GRAPH:
        (tree / f"fake/{phase}.sls").write_text(PHASE.format(phase=phase, site=path))
    (path / "runners").mkdir()
    (path / "runners/fake_runner.py").write_text(RUNNER.format(site=path))
    (path / "pillar").mkdir()
    (path / "pillar/platform.sls").write_text((CHECKOUT / "pillar/platform.sls").read_text())
    (path / "pillar/more.sls").write_text("{}\n")
    (path / "pillar/top.sls").write_text("base:\n  '*': [platform, more]\n")
    return path


@pytest.fixture(scope="session")
def master(salt_factories, site_path):
    tree = str(site_path / "salt")
    here = {
        name: [str(CHECKOUT / folder)]
        for name, folder in (
            ("module_dirs", "_modules"),
            ("states_dirs", "_states"),
            ("utils_dirs", "_utils"),
            ("pillar_dirs", "_pillar"),
            ("outputter_dirs", "_output"),
        )
    }
    factory = salt_factories.salt_master_daemon(
        "master",
        overrides={
            "file_roots": {"base": [tree]},
            "pillar_roots": {"base": [str(site_path / "pillar")]},
            "runner_dirs": [str(CHECKOUT / "_runners"), str(site_path / "runners")],
            "ext_pillar": [{"ai_platform": {"formulas": tree}}],
            "file_ignore_glob": ["*.pyc", "*/__pycache__/*"],
            "interface": "127.0.0.1",
            # A minion that is down is given up after these seconds.
            "timeout": 7,
            "gather_job_timeout": 7,
            "worker_threads": 4,
            **QUIET,
            **here,
        },
    )
    with factory.started():
        yield factory


@pytest.fixture(scope="session")
def running_site(master, site_path):
    minions = {name: master.salt_minion_daemon(name, overrides={"grains_cache": False, **QUIET}) for name in HOSTS}
    for minion in minions.values():
        minion.start()
    try:
        yield Site(site_path, master, minions)
    finally:
        # Each takes seconds to end.
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda minion: minion.terminate(), minions.values()))


@pytest.fixture
def site(running_site):
    """The site, with nothing deployed."""
    running_site.wipe()
    return running_site
