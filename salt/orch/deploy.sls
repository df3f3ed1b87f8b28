{#- The whole deploy. The graph is phases.yaml; pillar='{"phases": [...], "limit": [...]}' narrows it. -#}
{%- for step in salt["orchestration.steps"](pillar.phases | default([]), pillar.limit | default([])) %}
{{ step.id }}:
  {{ step.function }}: {{ step.arguments | json }}
{%- endfor %}
