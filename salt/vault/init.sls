# Vault's part on its host: user, release, key, storage, service. It ends with a Vault that answers; the runner
# vault_server.bootstrap on the master then certifies, initialises, unseals and fills it.
# Nothing here restarts a running Vault, because that would seal it: the runner does so, and unseals.
{% set vault = pillar.vault %}
{% set root = pillar.platform.data_root ~ '/vault' %}
{% if salt['vault_server.is_host']() %}
# The port is guarded before anything listens on it.
include:
  - firewall

# Vault asks Keycloak by its public name, and the verification goes the way that people go; the name servers that this
# host asks need not know the platform's names, and cannot before the first deploy.
vault-names:
  file.managed:
    - name: /etc/hosts
    - contents: {{ salt["vault_server.hosts_file"]() | json }}

vault-packages:
  pkg.installed:
    - pkgs: [logrotate]

vault-user:
  user.present:
    - name: vault
    - system: true
    - usergroup: true
    - home: /etc/vault.d
    - createhome: false
    - shell: /usr/sbin/nologin

vault-config-dir:
  file.directory:
    - names: [/etc/vault.d, /etc/vault.d/tls]
    - user: root
    - group: vault
    - mode: '0750'
    - require: [user: vault-user]

vault-root:
  file.directory:
    - name: {{ root }}
    - user: root
    - group: vault
    - mode: '0750'
    - makedirs: true
    - require: [user: vault-user]

vault-own-dirs:
  file.directory:
    - names: [{{ root }}/data, {{ root }}/audit, {{ vault.log_dir }}]
    - user: vault
    - group: vault
    - mode: '0750'
    - require: [file: vault-root]

vault-storage:
  vault_server.storage_marked:
    - require: [file: vault-own-dirs]

vault-release:
  vault_server.release_installed:
    - name: {{ vault.install_dir }}
    - version: {{ vault.version }}
    - source: {{ vault.source }}
    - source_hash: {{ vault.source_hash | json }}

vault-current:
  file.symlink:
    - name: {{ vault.install_dir }}/current
    - target: {{ vault.version }}
    - atomic: true
    - force: true
    - require: [vault_server: vault-release]

vault-command:
  file.symlink:
    - name: /usr/local/bin/vault
    - target: {{ vault.install_dir }}/current/vault
    - atomic: true
    - force: true
    - require: [file: vault-current]

vault-key:
  vault_server.key_present:
    - require: [file: vault-config-dir]

vault-config:
  file.serialize:
    - name: /etc/vault.d/vault.json
    - dataset: {{ salt['vault_server.configuration']() | json }}
    - serializer: json
    - user: root
    - group: vault
    - mode: '0640'
    - require: [file: vault-config-dir]

vault-logrotate:
  file.managed:
    - name: /etc/logrotate.d/vault
    - source: salt://vault/files/logrotate
    - template: jinja
    - context: {logs: '{{ vault.log_dir }}/audit.log {{ root }}/audit/audit.log'}
    - mode: '0644'
    - require: [pkg: vault-packages]

vault-unit:
  file.managed:
    - name: /etc/systemd/system/vault.service
    - source: salt://vault/files/vault.service
    - template: jinja
    - context:
        binary: {{ vault.install_dir }}/current/vault
        root: {{ root }}
        log_dir: {{ vault.log_dir }}
    - mode: '0644'

vault-service:
  service.running:
    - name: vault
    - enable: true
    - require:
      - file: vault-unit
      - file: vault-config
      - file: vault-current
      - vault_server: vault-key
      - vault_server: vault-storage
      - platform_firewall: firewall-loaded

# Shares that are encrypted to people are of no use to the master.
vault_sealed:
  vault_server.watched:
    - port: {{ pillar.services.vault.port }}
    - enabled: {{ vault.auto_unseal and not vault.pgp_keys }}
    - require: [service: vault-service]

{% else %}

vault-elsewhere:
  test.nop:
    - comment: Vault runs on another host

{% endif %}
