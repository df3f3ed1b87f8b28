# The host's instances in service discovery, as pillar asks; a record that it no longer asks for goes, whatever the mode.
{% set daemons = salt["ollama_discovery.daemons"]() %}
{% if "avahi" in daemons %}
ollama-avahi-packages:
  pkg.installed:
    - pkgs: {{ pillar.ollama.discovery_packages[grains.os_family] | json }}
    - install_recommends: false
{% endif %}
{% for record in salt["ollama_discovery.records"]() %}
ollama-{{ record.name }}-{{ record.kind }}:
{% if record.wanted %}
  file.managed:
    - name: {{ record.path }}
    - source: salt://ollama/files/discovery-{{ record.kind }}
    - template: jinja
    - mode: "0644"
    - makedirs: true
    - context: {{ {"record": record} | json }}
    - watch_in:
      - service: ollama-{{ record.kind }}
{% else %}
  ollama_discovery.record_absent:
    - name: {{ record.path }}
    - daemon: {{ record.daemon }}
{% endif %}
{% endfor %}
{% for kind, daemon in daemons.items() %}
ollama-{{ kind }}:
  service.running:
    - name: {{ daemon }}
    - enable: true
    - reload: true
{% endfor %}
