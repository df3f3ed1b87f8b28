# Ollama run natively: the pinned release, the shared store, one bound and confined service for each instance, a tuned host.
# Ollama has no authentication, so the firewall stands before an instance starts.
include:
  - firewall
{% set ollama = pillar.ollama %}
{% set models_dir = salt["ollama.models_dir"]() %}
{% set instances = salt["ollama.instances"]() %}
{% set gpu = salt["gpu.used"]() %}
{% set nvidia = gpu and "nvidia" in salt["gpu.found"]() %}
{% for name in instances %}
# First of all, and the end of the run where it fails: who has the port keeps it, and nothing else is changed.
ollama-{{ name }}-port:
  ollama.port_is_free:
    - name: {{ name }}
    - order: 1
    - failhard: true
{% endfor %}
ollama-packages:
  pkg.installed:
    - pkgs: {{ ollama.packages[grains.os_family] | json }}

ollama-user:
  group.present:
    - name: {{ ollama.group }}
    - system: true
  user.present:
    - name: {{ ollama.user }}
    - gid: {{ ollama.group }}
    - system: true
    - home: /var/lib/ollama
    - createhome: false
    - shell: /usr/sbin/nologin
    - fullname: Ollama
    - remove_groups: false
    - optional_groups: {{ ["render", "video"] if gpu else [] }}
    - require:
      - group: ollama-user

{% if not ollama.models_dir %}
ollama-data-root:
  file.directory:
    - name: {{ pillar.platform.data_root }}
    - mode: "0755"
    - makedirs: true
    - require_in:
      - file: ollama-models-dir
{% endif %}
ollama-models-dir:
  file.directory:
    - name: {{ models_dir }}
    - user: {{ ollama.user }}
    - group: {{ ollama.group }}
    - mode: "0750"
    - makedirs: true
    - require:
      - user: ollama-user

ollama-release:
  ollama.installed:
    - name: {{ ollama.version }}
    - require:
      - pkg: ollama-packages

ollama-command:
  file.symlink:
    - name: /usr/local/bin/ollama
    - target: {{ ollama.root }}/current/bin/ollama
    - force: true
    - require:
      - ollama: ollama-release

ollama-sysctl:
  file.managed:
    - name: /etc/sysctl.d/99-ollama-perf.conf
    - source: salt://ollama/files/99-ollama-perf.conf
    - template: jinja
    - mode: "0644"
    - makedirs: true
    - context: {{ {"tuning": ollama.tuning} | json }}

ollama-host-settings:
  file.managed:
    - name: /etc/tmpfiles.d/ollama-perf.conf
    - source: salt://ollama/files/ollama-perf.conf
    - template: jinja
    - mode: "0644"
    - makedirs: true
    - context: {{ {"tuning": ollama.tuning} | json }}

ollama-tuning-unit:
  file.managed:
    - name: /etc/systemd/system/ollama-tuning.service
    - source: salt://ollama/files/ollama-tuning.service
    - template: jinja
    - mode: "0644"
    - context:
        units: {{ instances.values() | map(attribute="unit") | list | json }}
  service.enabled:
    - name: ollama-tuning
    - require:
      - file: ollama-tuning-unit

ollama-tuning:
  ollama.host_tuned:
    - settings: {{ ollama.tuning | json }}

# Before the others start: one that is gone may hold a port that another was given.
ollama-retired-instances:
  ollama.no_other_instances:
    - units: {{ instances.values() | map(attribute="unit") | list | json }}
# Those of mode container, too. Their volumes, and the models, stay; and so do they where there is no release to start.
ollama-containers-gone:
  ollama_container.no_others:
    - require:
      - ollama: ollama-release
{% for name, instance in instances.items() %}
ollama-{{ name }}-unit:
  file.managed:
    - name: /etc/systemd/system/{{ instance.unit }}
    - source: salt://ollama/files/ollama.service
    - template: jinja
    - mode: "0644"
    - context:
        name: {{ name | json }}
        unit: {{ instance.unit }}
        ollama: {{ ollama | json }}
        models_dir: {{ models_dir | json }}
        gpu: {{ gpu | json }}
        nvidia: {{ nvidia | json }}

ollama-{{ name }}-settings:
  file.managed:
    - name: /etc/systemd/system/{{ instance.unit }}.d/override.conf
    - source: salt://ollama/files/override.conf
    - template: jinja
    - mode: "0644"
    - makedirs: true
    - context: {{ {"name": name, "instance": instance} | json }}

ollama-{{ name }}-running:
  ollama.up_to_date:
    - name: {{ instance.unit }}
    - environment: {{ instance.environment | json }}
    - require:
      - ollama: ollama-release

ollama-{{ name }}:
  service.running:
    - name: {{ instance.unit }}
    - enable: true
    - watch:
      - file: ollama-{{ name }}-unit
      - file: ollama-{{ name }}-settings
      - ollama: ollama-{{ name }}-running
    - require:
      - file: ollama-models-dir
      - ollama: ollama-release
      - ollama: ollama-tuning
      - ollama: ollama-retired-instances
      - ollama_container: ollama-containers-gone
      - platform_firewall: firewall-loaded
  ollama.ready:
    - name: {{ name }}
    - url: {{ instance.url }}
    - version: {{ ollama.version }}
    - timeout: {{ ollama.ready_timeout }}
    - unit: {{ instance.unit }}
    - require:
      - ollama: ollama-current
{% endfor %}
# One step for whoever starts the program, and taken back where an instance does not answer with it. After the services:
# other settings are in force by then.
ollama-current:
  ollama.in_use:
    - name: {{ ollama.version }}
    - instances: {{ salt["ollama_release.doors"]() | json }}
    - timeout: {{ ollama.ready_timeout }}
    - require:
{% for name in instances %}
      - service: ollama-{{ name }}
{% endfor %}
{% if ollama.models %}
ollama-models:
  model_slots.pulled:
    - models: {{ ollama.models | json }}
    - require:
{% for name in instances %}
      - ollama: ollama-{{ name }}
{% endfor %}
{% endif %}
