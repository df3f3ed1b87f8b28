# What every container of the platform needs on its host: the network, and the folder of their files. The formula of a
# container includes this and the firewall, and requires `sls: containers`.
# Phases that run side by side on one host share it: two of them may make a thing in one moment, and one is refused.
# Trying again it finds the thing made.
include:
  - firewall

containers-folder:
  file.directory:
    - name: {{ pillar.containers.folder }}
    - mode: "0700"
    - makedirs: true
    - retry: {attempts: 2, interval: 1}

containers-network:
  platform_container.network_present:
    - name: {{ pillar.containers.network }}
    - bridge: {{ pillar.containers.bridge }}
    - subnet: {{ pillar.containers.subnet | json }}
    - retry: {attempts: 2, interval: 1}
    - require:
      - platform_firewall: firewall-loaded
