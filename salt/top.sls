# What each role is made of: `salt <host> state.apply` brings a host to it, without the order and the master's part
# of a deploy, which are in orch/phases.yaml. A minion's roles come from platform:hosts in pillar.
base:
  'roles:ai_server':
    - match: pillar
    - vault
    - docker
    - ollama
    - benchmark
    - models
    - postgres
    - keycloak
    - qdrant
    - openwebui
    - openclaw
  'roles:coredns_host':
    - match: pillar
    - docker
    - coredns
  'roles:nginx_proxy':
    - match: pillar
    - nginx
  # One server without a master and with nothing but Ollama; what pillar that names no hosts means.
  'roles:ollama_server':
    - match: pillar
    - ollama
