#!/bin/sh
# A bare server as an operator gets one: systemd, sshd, sudo, Python, Docker, and the machine's own authorities.
set -eu
export DEBIAN_FRONTEND=noninteractive
mkdir -p /usr/local/share/ca-certificates
cp -r /machine-certificates/. /usr/local/share/ca-certificates/
apt-get -qq update
apt-get -qq install --no-install-recommends \
  ca-certificates curl dbus docker.io iproute2 iptables iputils-ping jq kmod less logrotate netcat-openbsd nftables numactl \
  openssh-server procps python3 python3-venv sudo systemd systemd-sysv unzip zstd >/dev/null
update-ca-certificates >/dev/null
# Docker's start belongs to the platform; keys and ids belong to each host.
systemctl disable -q docker.service docker.socket containerd.service
rm -f /etc/ssh/ssh_host_*
mkdir -p /etc/systemd/system/ssh.service.d
cat > /etc/systemd/system/ssh.service.d/keys.conf <<'UNIT'
[Service]
ExecStartPre=
ExecStartPre=/usr/bin/ssh-keygen -A
ExecStartPre=/usr/sbin/sshd -t
UNIT
# The account of a person who runs this server.
useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin
chmod 0440 /etc/sudoers.d/admin
: > /etc/machine-id
# Nothing of these works or is wanted in a container.
systemctl mask -q systemd-udevd.service systemd-udevd-kernel.socket systemd-udevd-control.socket \
  systemd-logind.service getty.target console-getty.service sys-kernel-debug.mount sys-kernel-tracing.mount
apt-get clean
rm -rf /var/lib/apt/lists/*
