# What the bootstrap applies over salt-ssh: Salt, and the master that this host belongs to, which it names in grains.
include:
  - salt_minion

/etc/salt/minion.d/host.conf:
  file.serialize:
    - dataset:
        id: {{ grains.id }}
        master: {{ grains.enrol.master }}
        master_finger: {{ grains.enrol.master_finger }}
    - serializer: yaml
    - makedirs: true
    - mode: "0644"
    - watch_in:
      - service: salt-minion
