# Whether the host does what the platform needs of it; each check is a state of its own.
{%- for check in salt["verify.names"]() %}
verify-{{ check }}:
  verify.passed:
    - name: {{ check }}
{%- endfor %}
