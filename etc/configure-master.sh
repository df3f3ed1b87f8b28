#!/usr/bin/env bash
# Make the Salt in /opt/salt this checkout's master: configuration, the login for Vault, the service.
# Arguments are folders of pillar files that come before the checkout's own. A second run changes nothing;
# the daemon is restarted only where something that it has in memory is another one.
set -euo pipefail
checkout=$(cd "$(dirname "$0")/.." && pwd)
stamp=/var/lib/ai-platform/master.sha256

# Salt's own place for the configuration and the one that the Saltfile names are the same files.
/opt/salt/bin/python "$checkout/etc/configure.py" "${@/#/--pillar=}"
mkdir -p /etc/salt /var/cache/salt/master/proc "$(dirname "$stamp")"
ln -sfn "$checkout/etc/master/master" /etc/salt/master
if [ -d /etc/salt/master.d ] && [ ! -L /etc/salt/master.d ]; then
  cp -an /etc/salt/master.d/. "$checkout/etc/master/master.d/"
  mv /etc/salt/master.d "/etc/salt/master.d.before-$(date +%Y%m%dT%H%M%S)"
fi
ln -sfn "$checkout/etc/master/master.d" /etc/salt/master.d
for command in salt salt-call salt-cp salt-key salt-master salt-run salt-ssh; do
  ln -sfn "/opt/salt/bin/$command" "/usr/local/bin/$command"
done
# Of what it says only an error is news.
told=$(salt-run --config-dir=/etc/salt vault_server.setup_master) || {
  echo "$told" >&2
  exit 1
}

install -D -m 0644 "$checkout/salt/salt_minion/files/logrotate" /etc/logrotate.d/salt
install -m 0644 "$checkout/etc/systemd/salt-master.service" /etc/systemd/system/salt-master.service
systemctl daemon-reload
systemctl enable --quiet salt-master.service
now=$({
  readlink -f /opt/salt
  cd "$checkout"
  find etc _utils _pillar _runners _modules _output -type f ! -name '*.pyc' -print0 | sort -z | xargs -0 sha256sum
} | sha256sum)
if [ "$now" = "$(cat "$stamp" 2>/dev/null)" ] && systemctl --quiet is-active salt-master.service; then
  echo "salt-master runs with this configuration"
else
  systemctl restart salt-master.service
  printf '%s\n' "$now" >"$stamp"
  echo "salt-master started"
fi
