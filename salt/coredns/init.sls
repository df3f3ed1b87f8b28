# The site's names. A change of the zone reaches CoreDNS by the serial in it; the container stays as it is.
include:
  - containers
{% set coredns = pillar.coredns %}
{% set folder = salt["platform_container.folder"]("coredns") %}
coredns-files:
  file.directory:
    - name: {{ folder }}
    - user: {{ coredns.uid }}
    - group: {{ coredns.uid }}
    - mode: "0500"
    - require:
      - file: containers-folder

coredns-config:
  file.managed:
    - name: {{ folder }}/Corefile
    - source: salt://coredns/files/Corefile
    - template: jinja
    - context:
        coredns: {{ coredns | json }}
        domain: {{ pillar.platform.domain }}
        zones: /zones
        # In the container: ports that need no rights.
        port: 1053
        health_port: 8080
        metrics_port: 9153
    - user: {{ coredns.uid }}
    - group: {{ coredns.uid }}
    - mode: "0400"
    - require:
      - file: coredns-files

coredns-zone-dir:
  file.directory:
    - name: {{ coredns.zone_dir }}
    - mode: "0755"
    - makedirs: true

coredns-zone:
  coredns.zone_current:
    - name: {{ salt["coredns.zone_file"]() }}
    - require:
      - file: coredns-zone-dir

coredns:
  platform_container.running:
    - image: {{ salt["platform_container.image"]("coredns") }}
    - user: "{{ coredns.uid }}:{{ coredns.uid }}"
    - memory_mib: {{ coredns.memory_mib }}
    - files: {{ folder }}
    - command: [-conf, /run/platform/Corefile]
    - publish:
        - "{{ pillar.address }}:{{ coredns.port }}:1053/udp"
        - "{{ pillar.address }}:{{ coredns.port }}:1053"
        - "127.0.0.1:{{ coredns.health_port }}:8080"
        - "127.0.0.1:{{ coredns.metrics_port }}:9153"
    # The image's program has it as a file's capability: without it the kernel refuses to start it, on any port.
    - cap_add: [NET_BIND_SERVICE]
    - volumes:
        {{ coredns.zone_dir }}: /zones
    - timeout: {{ coredns.ready_timeout }}
    - require:
      - sls: containers
      - file: coredns-config
      - coredns: coredns-zone

# The image has no shell for a check of its own: it is asked, by both protocols, for what it should serve.
coredns-answers:
  coredns.answers:
    - name: {{ pillar.address }}
    - timeout: {{ coredns.ready_timeout }}
    - require:
      - platform_container: coredns
