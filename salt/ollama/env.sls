# Where Ollama is, for other programs of this host: a service's EnvironmentFile, a container's env_file. No secret.
ollama-env:
  file.managed:
    - name: /etc/ai-platform/ollama.env
    - contents: {{ salt["ollama.env_text"]() | json }}
    - mode: "0644"
    - makedirs: true
