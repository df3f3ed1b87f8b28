"""The rules that keep the tree readable and safe, as far as a program can check them."""

from __future__ import annotations

import ast
import ipaddress
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import CHECKOUT

# The only links in the state tree: the Python folders that minions get, the suite that measures models, and the
# files that a host is installed with, which belong to Salt's own configuration. A link that leads anywhere else
# would serve what it points at.
LINKS = {
    "salt/benchmark/suite": "../../benchmarks/models",
    "salt/_beacons": "../_beacons",
    "salt/_modules": "../_modules",
    "salt/_states": "../_states",
    "salt/_utils": "../_utils",
    "salt/openclaw/files/requirements.txt": "../../../requirements/openclaw.txt",
    "salt/salt_minion/files/minion": "../../../etc/minion/minion",
    "salt/salt_minion/files/requirements.txt": "../../../requirements/salt.txt",
    "salt/salt_minion/files/salt-minion.service": "../../../etc/systemd/salt-minion.service",
}
# Shell commands in states and modules: {file: why it cannot be a state}. A command costs a hundred times what a
# state costs, and runs each time.
SHELL: dict[str, str] = {
    "_modules/nginx.py": "nginx alone tests its configuration; Salt has no module for it",
    "_modules/ollama_operations.py": "journalctl alone reads the journal; Salt has no module for it",
    "_modules/platform_ca.py": "the distribution's own program makes the bundle of trusted authorities",
    "_modules/platform_firewall.py": "nft alone reads and loads the kernel's rules; Salt has no module for it",
    "_states/orchestration.py": "a minion that still has to answer its job cannot restart itself: systemd does, later",
}
# Where waiting is written down, once.
SLEEPERS = {"_utils/aiplatform/wait.py"}

LOADED = ("_modules", "_states", "_runners", "_beacons", "_pillar")
SECRETS = {
    "a Vault token": r"\bhv[sbr]\.[A-Za-z0-9_-]{20,}",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/=]{20,}",
    "a Telegram token": r"\b\d{8,10}:[A-Za-z0-9_-]{35}\b",
    "a cloud key": r"\bAKIA[0-9A-Z]{16}\b",
}
ASSIGNED = re.compile(
    r"""(?ix)\b\w*(?:password|passwd|secret|token|api_key)["']?\s*[:=]\s*["']?([A-Za-z0-9+/_-]{16,}={0,2})["']?\s*$"""
)
HOME = r"(?<!\w)(/root/(?!\.ssh/)|/home/(?!admin/))"  # of whoever writes this; a host's own accounts may be named
# Package registries; written in parts so that this file does not name them.
REGISTRIES = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("files", "pythonhosted", "org"),
        ("deb", "debian", "org"),
        ("proxy", "golang", "org"),
        ("repo1", "maven", "org"),
        ("repo", "maven", "apache", "org"),
        ("registry", "npmjs", "org"),
        ("index", "crates", "io"),
    )
]


def listed(*patterns: str) -> list[str]:
    """The files of this repository, those not committed yet included."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    found = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted({name for name in found if (CHECKOUT / name).is_file() and not (CHECKOUT / name).is_symlink()})


def text_of(name: str) -> str:
    return (CHECKOUT / name).read_text(errors="replace")


def python_files(*folders: str) -> list[str]:
    return [name for folder in folders for name in listed(f"{folder}/*.py")]


def functions(name: str) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(text_of(name))) if isinstance(node, ast.FunctionDef)]


def public(name: str) -> list[ast.FunctionDef]:
    """The functions that Salt's loader offers under this file's name."""
    found = [node for node in ast.parse(text_of(name)).body if isinstance(node, ast.FunctionDef)]
    return [node for node in found if not node.name.startswith("_")]


def literals(name: str) -> list[str]:
    """The strings of a Python file, docstrings left out."""
    tree = ast.parse(text_of(name))
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)]
    documentation = {id(node.body[0].value) for node in nodes if node.body and isinstance(node.body[0], ast.Expr)}
    strings = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in documentation]
    return [node.value for node in strings if isinstance(node.value, str)]


def violations(found: list[str]) -> str:
    return "\n" + "\n".join(found)


def test_every_offered_function_shows_how_it_is_called():
    """A module's or runner's function has a command line, a state a YAML example."""
    missing = []
    for name in python_files("_modules", "_runners", "_states"):
        sign = "code-block:: yaml" if name.startswith("_states") else "CLI Example:"
        missing += [
            f"{name}: {node.name} lacks {sign}" for node in public(name) if sign not in (ast.get_docstring(node) or "")
        ]
    assert not missing, violations(missing)


def test_every_offered_argument_is_explained_or_explains_itself():
    """A function of many arguments says what they are."""
    missing = []
    for name in python_files("_modules", "_runners", "_states"):
        for node in public(name):
            names = [argument.arg for argument in node.args.args]
            if len(names) > 3:
                text = ast.get_docstring(node) or ""
                missing += [f"{name}: {node.name}: {word}" for word in names if word not in text]
    assert not missing, violations(missing)


def test_no_module_asks_for_pillar_by_a_call_that_masks_it():
    """Salt 3008 answers ``pillar.get`` in custom Python with stars, which would then be written as the value."""
    found = [name for name in python_files(*LOADED, "_utils") if "pillar.get" in literals(name)]
    assert not found, violations(found)


def test_only_known_links_lead_out_of_the_state_tree():
    tree = CHECKOUT / "salt"
    found = {path for path in tree.rglob("*") if path.is_symlink()}
    assert {str(path.relative_to(CHECKOUT)): str(path.readlink()) for path in found} == LINKS
    assert all(path.resolve().is_relative_to(CHECKOUT) and path.exists() for path in found)


def test_no_secret_stands_in_a_file():
    found = []
    for name in listed():
        text = text_of(name)
        found += [f"{name}: {what}" for what, pattern in SECRETS.items() if re.search(pattern, text)]
        # Tests and lock files are full of made-up values and hashes.
        if not name.startswith(("tests/", "requirements/")):
            hits = (ASSIGNED.search(line) for line in text.splitlines())
            found += [f"{name}: {hit.group(0).strip()}" for hit in hits if hit and re.search(r"\d", hit.group(1))]
    assert not found, violations(found)


@pytest.mark.parametrize(
    "line",
    ['api_key: "0a1b2c3d4e5f60718293a4b5c6d7e8f9"', "TOKEN=abcDEF0123456789abcdef", "admin_password: Xk29dkeE93kd8Fk3"],
)
def test_the_search_for_secrets_finds_them(line):
    assert ASSIGNED.search(line)


def test_shell_commands_are_few_and_explained():
    found = []
    for name in listed("salt/*.sls", "salt/**/*.sls"):
        found += [name] * bool(re.search(r"^\s+-?\s*cmd\.(run|script|wait)", text_of(name), re.MULTILINE))
    for name in python_files("_modules", "_states"):
        found += [name] * any(re.fullmatch(r"cmd\.\w+", word) for word in literals(name))
    unexplained = sorted(set(found) - SHELL.keys())
    assert not unexplained, violations(unexplained)
    assert not SHELL.keys() - set(found), "the list of shell commands is out of date"


def formulas() -> list[Path]:
    return sorted({path.parent for path in (CHECKOUT / "salt").glob("*/*.sls")} - {CHECKOUT / "salt" / "orch"})


def pillar_keys(folder: Path) -> set[str]:
    """The pillar keys that a formula's SLS files read."""
    text = "".join(path.read_text() for path in folder.rglob("*.sls"))
    found = re.findall(r"\bpillar(?:\.(\w+)|\[[\"'](\w+)[\"']\])", text)
    return {first or second for first, second in found} - {"get", "items"}


def described() -> dict[str, set[str]]:
    """``{formula: pillar keys that its schema describes}``."""
    files = (CHECKOUT / "salt").glob("*/schema.yaml")
    return {path.parent.name: set(yaml.safe_load(path.read_text()).get("properties", {})) for path in files}


def test_every_pillar_key_in_a_state_has_a_schema():
    known = set().union(*described().values()) | {"roles", "address", "selection"}
    unknown = [f"{folder.name}: {key}" for folder in formulas() for key in sorted(pillar_keys(folder) - known)]
    assert not unknown, violations(unknown)


def test_a_formula_with_settings_of_its_own_keeps_defaults_and_schema_together():
    for folder in (CHECKOUT / "salt").iterdir():
        kept = {name for name in ("defaults.yaml", "schema.yaml") if (folder / name).exists()}
        assert len(kept) != 1, f"{folder.name} has {kept} without the other"
        if kept:
            defaults = set(yaml.safe_load((folder / "defaults.yaml").read_text()) or {})
            shared = set().union(*(keys for name, keys in described().items() if name != folder.name))
            assert defaults <= described()[folder.name] | shared, f"{folder.name}: defaults without a schema"


def test_every_key_of_a_schema_is_described():
    def undescribed(schema, path, shared):
        children = dict(schema.get("properties") or {})
        if isinstance(schema.get("additionalProperties"), dict):
            yield from undescribed(schema["additionalProperties"], f"{path}.*", shared)
        for key, child in children.items():
            whole = shared.get(str(child.get("$ref", "")).removeprefix("#/$defs/"), {}) | child
            if "description" not in whole:
                yield f"{path}.{key}"
            yield from undescribed(whole, f"{path}.{key}", shared)

    missing = []
    for path in (CHECKOUT / "salt").glob("*/schema.yaml"):
        content = yaml.safe_load(path.read_text())
        missing += undescribed(content, path.parent.name, content.get("$defs", {}))
    assert not missing, violations(missing)


def test_no_file_holds_a_path_of_the_machine_it_was_written_on():
    found = []
    for name in listed():
        if name == "tests/unit/test_conventions.py":
            continue
        for number, line in enumerate(text_of(name).splitlines(), 1):
            if re.search(HOME, line) or (str(CHECKOUT) != "/srv/ai-platform" and f"{CHECKOUT}/" in line):
                found.append(f"{name}:{number}: {line.strip()[:100]}")
    assert not found, violations(found)


def test_addresses_are_nobodys():
    """Defaults and examples name addresses that are set aside for documentation; the lab has its own."""
    documentation = ipaddress.ip_network("192.0.2.0/24")
    patterns = ("pillar/*.sls", "salt/*.yaml", "salt/**/*.yaml", "salt/*.sls", "salt/**/*.sls", "*.md", "docs/*.md")
    found = []
    for name in set(listed(*patterns)) - {"docs/lab.md"}:
        for text in re.findall(r"\b(?:\d{1,3}\.){3}\d{1,3}\b", text_of(name)):
            address = ipaddress.ip_address(text)
            if not (address.is_loopback or address.is_unspecified or address in documentation):
                found.append(f"{name}: {text}")
    assert not found, violations(sorted(found))


def test_no_file_names_a_package_registry():
    """Where packages come from is each machine's own configuration."""
    found = [f"{name}: {host}" for name in listed() for host in REGISTRIES if host in text_of(name)]
    assert not found, violations(found)


def test_waiting_is_written_once():
    found = []
    for name in set(python_files(*LOADED, "_utils")) - SLEEPERS:
        nodes = [node for node in ast.walk(ast.parse(text_of(name))) if isinstance(node, ast.Attribute)]
        found += [f"{name}:{node.lineno}: await a condition (wait.until)" for node in nodes if node.attr == "sleep"]
    assert not found, violations(found)


def test_no_script_swallows_a_failure():
    found = [
        name for name in listed("*.sh", "*.sls", "Makefile", ".ci/run") if re.search(r"\|\|\s*true\b", text_of(name))
    ]
    assert not found, violations(found)


def code_lines(node: ast.FunctionDef) -> int:
    """The length of a function, its docstring and signature left out."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return (node.end_lineno - body[0].lineno + 1) if body else 0


def test_functions_and_files_stay_small():
    found = []
    for name in python_files(*LOADED, "_utils", "lab", "tests"):
        length = len(text_of(name).splitlines())
        found += [f"{name}: {length} lines"] * (length > 500)
        if not name.startswith("tests/"):
            rows = [(node.name, code_lines(node)) for node in functions(name)]
            found += [f"{name}: {function} has {lines} lines" for function, lines in rows if lines > 40]
    assert not found, violations(found)


def test_jinja_only_chooses_and_loops():
    found = []
    for name in listed("salt/*.sls", "salt/**/*.sls", "salt/**/*.jinja"):
        text = text_of(name)
        found += [f"{name}: {word}" for word in re.findall(r"{%-?\s*(macro|include|extends|call)\b", text)]
        depth = 0
        for tag in re.findall(r"{%-?\s*(for|if|endfor|endif)\b", text):
            depth += -1 if tag.startswith("end") else 1
            if depth > 2:
                found.append(f"{name}: nested deeper than a condition in a loop")
    assert not found, violations(found)
