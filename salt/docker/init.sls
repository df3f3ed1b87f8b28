# The Docker engine: packages, daemon.json, service, and who may use it.
{% set docker = pillar.docker %}
{% set source = docker.source[grains.os_family] %}
{% if source == "docker-ce" %}
include:
  - docker.repository
{% endif %}
docker-packages:
  pkg.installed:
    - pkgs: {{ docker.packages[source][grains.os_family] | json }}

docker-daemon-settings:
  file.serialize:
    - name: /etc/docker/daemon.json
    - dataset: {{ docker.daemon | json }}
    - serializer: json
    - serializer_opts:
        - indent: 2
        - sort_keys: true
    - mode: "0644"
    - makedirs: true

docker-group:
  group.present:
    - name: docker
    - system: true
    - addusers: {{ docker.admin_users | json }}
    - require:
      - pkg: docker-packages

docker-service:
  service.running:
    - name: docker
    - enable: true
    - watch:
      - pkg: docker-packages
      - file: docker-daemon-settings
