# The slots: models pulled, aliases made, each slot loaded, and loaded again after every start of its instance.
models-pulled:
  model_slots.pulled: []

models-warmup-program:
  file.managed:
    - name: /usr/local/bin/ollama-warmup
    - source: salt://models/files/ollama-warmup
    - mode: "0755"
{% set settings = "/etc/ai-platform/warmup-%s.json" %}
{% for name in pillar.ollama.instances %}
models-{{ name }}:
  model_slots.served:
    - name: {{ name }}
    - warmup: {{ settings % name }}
    - require:
      - model_slots: models-pulled
{% endfor %}
# After all slots serve: somebody waits for the model, nobody for its warm-up.
{% for name, instance in pillar.ollama.instances.items() %}
{% set warmup = salt["ollama.warmup_unit"](name) %}
models-{{ name }}-warmup-settings:
  file.serialize:
    - name: {{ settings % name }}
    - serializer: json
    - dataset: {{ salt["model_slots.warmup_settings"](name) | json }}
    - mode: "0644"
    - makedirs: true
    - require:
      - model_slots: models-{{ name }}

models-{{ name }}-warmup-unit:
  file.managed:
    - name: /etc/systemd/system/{{ warmup }}
    - source: salt://models/files/ollama-warmup.service
    - template: jinja
    - mode: "0644"
    - context: {{ {"name": name, "unit": instance.unit, "settings": settings % name, "seconds": salt["model_slots.warmup_seconds"](name)} | json }}

models-{{ name }}-warmup:
  model_slots.warmed:
    - name: {{ warmup }}
    - instance: {{ name }}
    - watch:
      - file: models-warmup-program
      - file: models-{{ name }}-warmup-settings
      - file: models-{{ name }}-warmup-unit
{% endfor %}
# The master has it loaded again: what somebody unloaded, and an instance that went away.
slots_cold:
  model_slots.watched:
    - interval: {{ pillar.models.watch_interval }}
    - enabled: {{ pillar.models.watch }}
    - require:
{% for name in pillar.ollama.instances %}
      - model_slots: models-{{ name }}-warmup
{% endfor %}
