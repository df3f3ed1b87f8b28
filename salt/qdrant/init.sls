# Qdrant, where Open WebUI keeps what it has read of documents: a container that only its clients reach, with a key.
{% if salt["vault_server.is_host"]() %}
include:
  - containers
{% set qdrant = pillar.qdrant %}
{% set folder = salt["platform_container.folder"]("qdrant") %}
{% set data = pillar.platform.data_root ~ "/qdrant" %}
qdrant-data:
  platform_folder.owned:
    - name: {{ data }}
    - uid: {{ qdrant.uid }}
    - container: qdrant
    - folders: [storage, snapshots]
    - require:
      - sls: containers

qdrant-files:
  file.directory:
    - name: {{ folder }}
    - user: {{ qdrant.uid }}
    - group: {{ qdrant.uid }}
    - mode: "0500"
    - require:
      - file: containers-folder

# An empty key would leave Qdrant open to everybody who reaches it: what is not there is refused.
qdrant-secrets:
  platform_secret.file:
    - name: {{ folder }}/secrets.env
    - settings: {QDRANT__SERVICE__API_KEY: "{qdrant:api_key}"}
    - user: {{ qdrant.uid }}
    - group: {{ qdrant.uid }}
    - require:
      - file: qdrant-files

qdrant:
  platform_container.running:
    - image: {{ salt["platform_container.image"]("qdrant") }}
    - user: "{{ qdrant.uid }}:{{ qdrant.uid }}"
    - memory_mib: {{ qdrant.memory_mib }}
    - files: {{ folder }}
    - secrets: true
    - command: [./entrypoint.sh]
    - environment:
        QDRANT__TELEMETRY_DISABLED: "true"
        QDRANT__LOG_LEVEL: INFO
        QDRANT__SERVICE__ENABLE_STATIC_CONTENT: "false"
        # The root file system is read-only.
        QDRANT_INIT_FILE_PATH: /tmp/.qdrant-initialized
        TZ: UTC
    - publish: ["{{ pillar.address }}:{{ qdrant.port }}:6333"]
    - volumes:
        {{ data }}/storage: /qdrant/storage
        {{ data }}/snapshots: /qdrant/snapshots
    # The image has no curl.
    - health:
        test:
          - bash
          - -c
          - exec 3<>/dev/tcp/127.0.0.1/6333 && printf 'GET /healthz HTTP/1.0\r\n\r\n' >&3 && grep -q passed <&3
        interval: 5
        timeout: 5
        start_period: 60
        retries: 3
    - timeout: {{ qdrant.ready_timeout }}
    - require:
      - sls: containers
      - platform_folder: qdrant-data
      - platform_secret: qdrant-secrets
{% else %}
qdrant-elsewhere:
  test.nop:
    - comment: Qdrant runs on another host
{% endif %}
