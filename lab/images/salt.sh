#!/bin/sh
# Salt as the platform's own formula and bootstrap install it, from the wheelhouse, without a network.
set -eu
folder=/opt/salt-$(printf %.12s "$SALT_DIGEST")
python3 -m venv "$folder"
for lock in wheels build; do
  tr '\n' '\0' < "/locks/$lock.args" | xargs -0 "$folder/bin/python" -m pip
done
printf '%s\n' "$SALT_DIGEST" > "$folder/requirements.sha256"
ln -s "$(basename "$folder")" /opt/salt
for command in salt salt-call salt-cp salt-key salt-master salt-minion salt-run salt-ssh; do
  ln -s "/opt/salt/bin/$command" "/usr/local/bin/$command"
done
