#!/usr/bin/env bash
# Renew the lock files: exact versions with hashes, for every platform, without the address of any index.
set -euo pipefail
cd "$(dirname "$0")/.."
tool=$(mktemp -d)
trap 'rm -rf "$tool"' EXIT
python3 -m venv "$tool"
"$tool/bin/pip" install --quiet uv
for name in salt master openclaw dev; do
  "$tool/bin/uv" pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-header \
    --no-emit-index-url --no-emit-find-links --output-file "requirements/$name.txt" "requirements/$name.in"
done
