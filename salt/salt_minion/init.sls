# Salt on a minion: the locked packages in an environment of their own, the commands, the configuration, the service.
{% set minion = pillar.salt_minion %}
salt-minion-python:
  pkg.installed:
    - pkgs: {{ minion.packages[grains.os_family] | json }}

salt-minion-environment:
  salt_venv.installed:
    - name: /opt/salt
    - requirements: salt://salt_minion/files/requirements.txt
    - python: {{ minion.python[grains.os_family] }}
    - wheelhouse: "{{ minion.wheelhouse }}"
    - without: {{ minion.without | json }}
    - build: {{ minion.build | json }}
    - require:
      - pkg: salt-minion-python
{% for command in ["salt-call", "salt-minion"] %}
/usr/local/bin/{{ command }}:
  file.symlink:
    - target: /opt/salt/bin/{{ command }}
    - require:
      - salt_venv: salt-minion-environment
{% endfor %}
/etc/salt/minion:
  file.managed:
    - source: salt://salt_minion/files/minion
    - makedirs: true
    - mode: "0644"

/etc/logrotate.d/salt:
  file.managed:
    - source: salt://salt_minion/files/logrotate
    - makedirs: true
    - mode: "0644"

/etc/systemd/system/salt-minion.service:
  file.managed:
    - source: salt://salt_minion/files/salt-minion.service
    - mode: "0644"

salt-minion:
  service.running:
    - enable: true
    - watch:
      - salt_venv: salt-minion-environment
      - file: /etc/salt/minion
      - file: /etc/systemd/system/salt-minion.service
