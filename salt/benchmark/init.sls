# The candidates for the slots: pulled, and measured where they would serve. The master then chooses
# (salt-run benchmark.choose); salt-run benchmark.run does all of it.
benchmark-models:
  model_slots.pulled:
    - models: {{ salt["benchmark.wanted_models"]() | json }}

benchmark-state-dir:
  file.directory:
    - name: {{ pillar.benchmark.state_dir }}
    - mode: "0750"
    - makedirs: true

benchmark-measured:
  benchmark.measured:
    - name: models of this host
    - require:
      - model_slots: benchmark-models
      - file: benchmark-state-dir
{% if opts.file_client == "local" %}
benchmark-chosen:
  benchmark.chosen:
    - name: models of this host
    - require:
      - benchmark: benchmark-measured
{% endif %}
