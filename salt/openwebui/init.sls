# Open WebUI, the chat: a container before the Ollama instances, Keycloak's sign-on, PostgreSQL and Qdrant. All its settings
# are made here; what an administrator changes in its pages lasts until the next start.
{% if salt["vault_server.is_host"]() %}
include:
  - containers
  - trust
{% set openwebui = pillar.openwebui %}
{% set folder = salt["platform_container.folder"]("openwebui") %}
{% set data = pillar.platform.data_root ~ "/open-webui" %}
openwebui-data:
  platform_folder.owned:
    - name: {{ data }}
    - uid: {{ openwebui.uid }}
    - container: openwebui
    - require:
      - sls: containers

openwebui-files:
  file.directory:
    - name: {{ folder }}
    - user: {{ openwebui.uid }}
    - group: {{ openwebui.uid }}
    - mode: "0500"
    - require:
      - file: containers-folder

openwebui-rules:
  file.managed:
    - name: {{ folder }}/platform_app.py
    - source: salt://openwebui/files/platform_app.py
    - user: {{ openwebui.uid }}
    - group: {{ openwebui.uid }}
    - mode: "0400"
    - require:
      - file: openwebui-files

openwebui-authorities:
  file.managed:
    - name: {{ folder }}/authorities.crt
    - source: {{ salt["platform_ca.bundle"]() }}
    - user: {{ openwebui.uid }}
    - group: {{ openwebui.uid }}
    - mode: "0400"
    - show_changes: false
    - require:
      - file: openwebui-files
      - sls: trust

openwebui-secrets:
  platform_secret.file:
    - name: {{ folder }}/secrets.env
    - settings:
        WEBUI_SECRET_KEY: "{openwebui:secret_key}"
        WEBUI_ADMIN_PASSWORD: "{openwebui:admin_password}"
        OAUTH_CLIENT_SECRET: "{keycloak:client_secret}"
        OPENID_PROVIDER_URL: "{keycloak:oidc_url}"
        QDRANT_API_KEY: "{qdrant:api_key}"
        DATABASE_URL: "postgresql://{{ openwebui.database.user }}:{databases:openwebui|urlencode}@{{ openwebui.database.host }}/{{ openwebui.database.name }}"
    - user: {{ openwebui.uid }}
    - group: {{ openwebui.uid }}
    - require:
      - file: openwebui-files

openwebui:
  platform_container.running:
    - image: {{ salt["platform_container.image"]("openwebui") }}
    - user: "{{ openwebui.uid }}:{{ openwebui.uid }}"
    - memory_mib: {{ openwebui.memory_mib }}
    - files: {{ folder }}
    - secrets: true
    - command: {{ salt["openwebui.command"]() | json }}
    - environment: {{ salt["openwebui.environment"]("/run/platform/authorities.crt") | json }}
    - publish: ["{{ pillar.address }}:{{ openwebui.port }}:8080"]
    - volumes:
        {{ data }}: /app/backend/data
    - tmpfs:
        /tmp: size=256m
    - hosts: {{ salt["openwebui.hosts"]() | json }}
    - health:
        test: [python3, -c, "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/ready', timeout=4)"]
        interval: 10
        timeout: 5
        start_period: 300
        retries: 3
    - timeout: {{ openwebui.ready_timeout }}
    - require:
      - sls: containers
      - platform_folder: openwebui-data
      - file: openwebui-rules
      - file: openwebui-authorities
      - platform_secret: openwebui-secrets
{% else %}
openwebui-elsewhere:
  test.nop:
    - comment: The chat runs on another host
{% endif %}
