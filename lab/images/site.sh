#!/bin/sh
# What the site's own servers need: files and a registry, where an air-gapped site has them too; and what Salt's Python
# has on the master alone.
set -eu
tr '\n' '\0' < /locks/master.args | xargs -0 /opt/salt/bin/python -m pip
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update
apt-get -qq install --no-install-recommends docker-registry nginx-light >/dev/null
systemctl disable -q nginx.service docker-registry.service
apt-get clean
rm -rf /var/lib/apt/lists/*
