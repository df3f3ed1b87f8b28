#!/usr/bin/env bash
# Make this server the platform's Salt master: the locked Salt under /opt/salt, its configuration, its service.
# Run as root in the checkout, after pillar/platform.sls names the hosts; a second run changes nothing.
# An argument names a folder of pillar files that come before the checkout's own.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
pillar=("$@")

[ "$(id -u)" -eq 0 ] || {
  echo "Run this as root: it installs a service." >&2
  exit 1
}

lock=$(sha256sum "$checkout/requirements/salt.txt" | cut -c1-12)
if [ ! -e "/opt/salt-$lock/.ready" ]; then
  "$checkout/etc/prerequisites.sh" python3
  echo "Salt into /opt/salt-$lock"
  python3 -m venv "/opt/salt-$lock"
  "/opt/salt-$lock/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r "$checkout/requirements/salt.txt"
  touch "/opt/salt-$lock/.ready"
fi
ln -sfn "salt-$lock" /opt/salt
for command in salt salt-call salt-cp salt-key salt-master salt-run salt-ssh; do
  ln -sfn "/opt/salt/bin/$command" "/usr/local/bin/$command"
done

# Salt's own place for the configuration and the one that the Saltfile names are the same files.
/opt/salt/bin/python "$checkout/etc/configure.py" "${pillar[@]/#/--pillar=}"
mkdir -p /etc/salt
ln -sfn "$checkout/etc/master/master" /etc/salt/master
ln -sfn "$checkout/etc/master/master.d" /etc/salt/master.d
mkdir -p /var/cache/salt/master/proc
salt-run --config-dir /etc/salt vault_server.setup_master

install -m 0644 "$checkout/etc/systemd/salt-master.service" /etc/systemd/system/salt-master.service
systemctl daemon-reload
systemctl enable --quiet salt-master.service
systemctl restart salt-master.service
systemctl is-active salt-master.service
