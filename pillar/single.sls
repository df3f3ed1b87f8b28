# One server without a master: all that `salt-call --local state.apply ollama` reads (docs/single.md).
ollama:
  version: 0.17.4
  api_host: 0.0.0.0
  api_port: 11434
  models_dir: /var/lib/ollama/models
  models: [llama3.2:3b]
services:
  # Who besides this host may use it. Ollama asks nobody for a password.
  ollama: {reach: [containers, 192.0.2.0/24]}
