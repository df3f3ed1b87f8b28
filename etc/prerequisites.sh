#!/usr/bin/env bash
# What `make env` needs from the system: a Python with venv and headers, and a C compiler (one of Salt's
# dependencies has no wheel). On Debian, as root, missing ones are installed; elsewhere they are named.
set -euo pipefail
python=${1:-python3}

missing=()
command -v "$python" >/dev/null || missing+=(python3)
"$python" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
command -v gcc >/dev/null || missing+=(gcc)
"$python" -c 'import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
  2>/dev/null || missing+=(python3-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "Installing ${missing[*]}"
  # An installation that was interrupted is carried on: nothing can be installed before.
  [ -z "$(dpkg --audit)" ] || DEBIAN_FRONTEND=noninteractive dpkg --configure -a
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "This machine lacks: ${missing[*]}. Install them, then run make again." >&2
  exit 1
fi
