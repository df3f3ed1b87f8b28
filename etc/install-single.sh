#!/usr/bin/env bash
# Make this a server without a master: the locked Salt in /opt/salt, and Salt's configuration for this checkout. Then,
# in the checkout: edit pillar/single.sls, and run salt-call --local state.apply ollama
# Run as root; a second run changes nothing. Arguments are folders of pillar files that come before the checkout's own.
# WHEELHOUSE, a URL or folder, is where the packages are, instead of the index that pip is configured with.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)

[ "$(id -u)" -eq 0 ] || {
  echo "Run this as root: it installs Salt." >&2
  exit 1
}

if ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
  command -v apt-get >/dev/null || {
    echo "This machine lacks python3 with venv. Install them, then run this again." >&2
    exit 1
  }
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends python3 python3-venv >/dev/null
fi
python3 -B "$checkout/etc/environment.py" ${WHEELHOUSE:+--wheelhouse "$WHEELHOUSE"}
/opt/salt/bin/python -B "$checkout/etc/configure.py" "${@/#/--pillar=}"
ln -sfn /opt/salt/bin/salt-call /usr/local/bin/salt-call
echo "Ready. In $checkout: salt-call --local state.apply ollama"
