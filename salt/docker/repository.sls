# Docker's own repository of packages.
{% set repository = pillar.docker.repository[grains.os_family] %}
{% if grains.os_family == "Debian" %}
docker-repository-key:
  file.managed:
    - name: /etc/apt/keyrings/docker.asc
    - source: {{ repository.key }}
    - source_hash: {{ repository.key_sha256 }}
    - mode: "0644"
    - makedirs: true
    - require_in:
      - pkgrepo: docker-repository
{% endif %}
docker-repository:
  pkgrepo.managed:
    - humanname: Docker
{%- if grains.os_family == "Debian" %}
    - name: "deb [arch={{ grains.osarch }} signed-by=/etc/apt/keyrings/docker.asc] {{ repository.url }} {{ grains.oscodename }} stable"
    - file: /etc/apt/sources.list.d/docker.list
{%- else %}
    - name: docker-ce
    - baseurl: {{ repository.url }}
    - gpgkey: {{ repository.key }}
    - gpgcheck: 1
{%- endif %}
    - require_in:
      - pkg: docker-packages
