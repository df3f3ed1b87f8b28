# Ollama on this host: services of its own (native), or containers (container).
include:
  - ollama.{{ pillar.ollama.mode }}
  - ollama.discovery
  - ollama.env
