# What every container of the platform needs on its host: the network, and the folder of their files. The formula of a
# container includes this and the firewall, and requires `sls: containers`.
include:
  - firewall

containers-folder:
  file.directory:
    - name: {{ pillar.containers.folder }}
    - mode: "0700"
    - makedirs: true

containers-network:
  platform_container.network_present:
    - name: {{ pillar.containers.network }}
    - bridge: {{ pillar.containers.bridge }}
    - subnet: {{ pillar.containers.subnet | json }}
    - require:
      - platform_firewall: firewall-loaded
