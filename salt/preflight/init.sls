# Whether the host can carry the platform. Each check is a state of its own, so all that fails is shown at once.
{%- for check in salt["preflight.names"]() %}
preflight-{{ check }}:
  preflight.passed:
    - name: {{ check }}
{%- endfor %}
