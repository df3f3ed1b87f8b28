#!/usr/bin/env bash
# Make this server the platform's Salt master: the locked Salt under /opt/salt, then its configuration and service.
# Run as root in the checkout, after pillar/platform.sls names the hosts; a second run changes nothing.
# Arguments are folders of pillar files that come before the checkout's own.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)

[ "$(id -u)" -eq 0 ] || {
  echo "Run this as root: it installs a service." >&2
  exit 1
}

lock=$(sha256sum "$checkout/requirements/master.txt" | cut -c1-12)
if [ ! -e "/opt/salt-$lock/.ready" ]; then
  "$checkout/etc/prerequisites.sh" python3
  echo "Salt into /opt/salt-$lock"
  python3 -m venv "/opt/salt-$lock"
  "/opt/salt-$lock/bin/pip" install --quiet --disable-pip-version-check --require-hashes \
    -r "$checkout/requirements/master.txt"
  touch "/opt/salt-$lock/.ready"
fi
ln -sfn "salt-$lock" /opt/salt
exec "$checkout/etc/configure-master.sh" "$@"
