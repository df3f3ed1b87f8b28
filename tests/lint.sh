#!/usr/bin/env bash
# Every linter over what git tracks or would track; all of them run, then the verdict.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
failed=()

check() {
  local name=$1
  shift
  if "$@"; then echo "ok    $name"; else
    echo "FAIL  $name"
    failed+=("$name")
  fi
}

listed() { git ls-files --cached --others --exclude-standard -- "$@" | while read -r f; do [ -f "$f" ] && printf '%s\n' "$f"; done; }

mapfile -t sls < <(listed 'salt/*.sls' 'salt/**/*.sls')
mapfile -t yaml < <(listed '*.yaml' '*.yml' '.yamllint' 'Saltfile' 'etc/*/m*')
mapfile -t shell < <(listed '*.sh' '.ci/run')

check ruff ruff check --quiet .
check ruff-format ruff format --quiet --check .
check mypy mypy
check yamllint yamllint --strict "${yaml[@]}"
check salt-lint salt-lint "${sls[@]}"
check shellcheck shellcheck "${shell[@]}"

[ ${#failed[@]} -eq 0 ] || {
  echo "Linters that failed: ${failed[*]}" >&2
  exit 1
}
