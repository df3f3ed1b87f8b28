# Ollama in Docker: a container, a volume and its models for each profile that this host runs.
include:
{% if not salt["platform_container.answers"]() %}
  - docker
{% endif %}
  - containers
{% set profiles = salt["ollama_container.profiles"]() %}
{% for name, profile in profiles.items() %}
# First of all, and the end of the run where they fail: who has the port keeps it, and nothing else is changed.
ollama-{{ name }}-port:
  ollama_container.port_is_free:
    - name: {{ name }}
    - order: 1
    - failhard: true
ollama-{{ name }}-gpu:
  ollama_container.gpu_is_there:
    - name: {{ name }}
    - order: 2
    - failhard: true
{% endfor %}
# Before the others start: one that goes or moves may hold a port that another was given.
ollama-containers-retired:
  ollama_container.no_others:
    - require:
      - sls: containers
{% for name, profile in profiles.items() %}
ollama-{{ name }}-volume:
  platform_container.volume_present:
    - name: {{ profile.volume }}
    - uid: {{ profile.uid }}
    - gid: {{ profile.uid }}
    - device: {{ profile.storage | json }}
    - require:
      - sls: containers
{% if profile.models_folder %}
ollama-{{ name }}-models-folder:
  file.directory:
    - name: {{ profile.models_folder }}
    - makedirs: true
    - require_in:
      - platform_container: ollama-{{ name }}
{% endif %}
{% if salt["ollama_container.warning"](name) %}
ollama-{{ name }}-exposed:
  notice.shown:
    - text: {{ salt["ollama_container.warning"](name) | json }}
{% endif %}
ollama-{{ name }}:
  platform_container.running:
    - name: {{ profile.name }}
{% for key, value in salt["ollama_container.arguments"](name).items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
    - require:
      - platform_container: ollama-{{ name }}-volume
      - ollama_container: ollama-containers-retired
  ollama.ready:
    - name: {{ name }}
{% for key, value in salt["ollama_container.readiness"](name).items() %}
    - {{ key }}: {{ value | json }}
{% endfor %}
    - require:
      - platform_container: ollama-{{ name }}
  ollama_container.models_present:
    - name: {{ name }}
    - require:
      - ollama: ollama-{{ name }}
{% endfor %}
