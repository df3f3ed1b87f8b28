# The whole platform on one host: it becomes its own master, and its own minion with every role.
# salt-call --local --id=<the host in platform:hosts> state.apply platform.single; then salt-run ai_platform.deploy
include:
  - salt_minion

platform-single-roles:
  platform_single.whole:
    - name: {{ grains.id }}
    - order: 1
    - failhard: true

platform-single-master:
  platform_single.master_running:
    - require:
      - salt_venv: salt-minion-environment

platform-single-minion:
  platform_single.enrolled:
    - name: {{ grains.id }}
    - require:
      - platform_single: platform-single-master
    - watch_in:
      - service: salt-minion
