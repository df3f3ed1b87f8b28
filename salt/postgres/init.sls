# PostgreSQL in a container: its cluster, and a database with its own role for each application.
{% set postgres = pillar.postgres %}
{% set files = salt["platform_container.folder"]("postgres") %}
{% set data = pillar.platform.data_root ~ "/postgres" %}
{% if salt["vault_server.is_host"]() %}
include:
  - containers

postgres-files-folder:
  file.directory:
    - name: {{ files }}
    - user: {{ postgres.uid }}
    - group: {{ postgres.uid }}
    - mode: "0500"
    - require:
      - file: containers-folder
{% for name in ["start", "postgresql.conf", "pg_hba.conf", "pg_ident.conf", "passwd"] %}
postgres-{{ name }}:
  file.managed:
    - name: {{ files }}/{{ name }}
    - source: salt://postgres/files/{{ name }}
    - template: jinja
    - context: {{ {"postgres": postgres, "databases": postgres.databases, "major": postgres.version.split(".")[0]} | json }}
    - user: {{ postgres.uid }}
    - group: {{ postgres.uid }}
    - mode: "0400"
    - require:
      - file: postgres-files-folder
    - require_in:
      - platform_container: postgres
{% endfor %}
postgres-folders:
  file.directory:
    - names: [{{ data }}, {{ data }}/data, {{ data }}/socket]
    - user: {{ postgres.uid }}
    - group: {{ postgres.uid }}
    - mode: "0700"
    - makedirs: true

postgres:
  platform_container.running:
    - image: {{ salt["platform_container.image"]("postgres") }}
    - user: "{{ postgres.uid }}:{{ postgres.uid }}"
    - memory_mib: {{ postgres.memory_mib }}
    - shm_mib: 256
    - files: {{ files }}
    - entrypoint: [/bin/sh, /run/platform/start]
    - volumes:
        {{ data }}/data: /var/lib/postgresql/data
        {{ data }}/socket: /run/postgresql
        {{ files }}/passwd: /etc/passwd:ro
    - health: {test: [pg_isready, --quiet, --host=/run/postgresql], interval: 5, timeout: 5, start_period: {{ postgres.timeout }}}
    - timeout: {{ postgres.timeout }}
    - require:
      - sls: containers
      - file: postgres-folders
{% for name in postgres.databases %}
postgres-role-{{ name }}:
  platform_postgres.role_present:
    - name: {{ name }}
    - secret: databases:{{ name }}
    - require:
      - platform_container: postgres

postgres-database-{{ name }}:
  platform_postgres.database_present:
    - name: {{ name }}
    - owner: {{ name }}
    - require:
      - platform_postgres: postgres-role-{{ name }}
{% endfor %}
{% else %}
postgres-elsewhere:
  test.nop:
    - comment: PostgreSQL runs on another host
{% endif %}
