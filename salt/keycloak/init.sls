# Keycloak in a container, and in it what pillar says: realm, roles, clients, the first user, the verification's people.
{% set keycloak = pillar.keycloak %}
{% set files = salt["platform_container.folder"]("keycloak") %}
{% set data = pillar.platform.data_root ~ "/keycloak" %}
{% set image = salt["platform_container.image"]("keycloak") %}
{% set site = salt["keycloak_admin.site"]() %}
{% if salt["vault_server.is_host"]() %}
include:
  - containers

keycloak-files-folder:
  file.directory:
    - name: {{ files }}
    - user: {{ keycloak.uid }}
    - group: {{ keycloak.uid }}
    - mode: "0500"
    - require:
      - file: containers-folder

keycloak-data-folder:
  file.directory:
    - name: {{ data }}
    - user: {{ keycloak.uid }}
    - group: {{ keycloak.uid }}
    - mode: "0700"
    - makedirs: true
{% for name in ["start", "health"] %}
keycloak-{{ name }}:
  file.managed:
    - name: {{ files }}/{{ name }}
    - source: salt://keycloak/files/{{ name }}
    - template: jinja
    - context: {{ {"build": keycloak.build | dictsort | json} | json }}
    - user: {{ keycloak.uid }}
    - group: {{ keycloak.uid }}
    - mode: "0500"
    - require:
      - file: keycloak-files-folder
    - require_in:
      - platform_container: keycloak
{% endfor %}
keycloak-secrets:
  platform_secret.file:
    - name: {{ files }}/secrets.env
    - settings:
        KC_DB_PASSWORD: "{databases:keycloak}"
        KC_BOOTSTRAP_ADMIN_USERNAME: {{ keycloak.admin }}
        KC_BOOTSTRAP_ADMIN_PASSWORD: "{keycloak:admin_password}"
    - user: {{ keycloak.uid }}
    - group: {{ keycloak.uid }}
    - require:
      - file: keycloak-files-folder

keycloak:
  platform_container.running:
    - image: {{ image }}
    - user: "{{ keycloak.uid }}:0"
    - memory_mib: {{ keycloak.memory_mib }}
    - files: {{ files }}
    - secrets: true
    - command: [/bin/bash, /run/platform/start]
    - environment: {{ site.environment | json }}
    - publish: ["{{ pillar.address }}:{{ keycloak.port }}:8080", "127.0.0.1:{{ keycloak.port }}:8080"]
    - volumes: {{ {data: "/opt/keycloak/data", "keycloak-{image}": "/opt/keycloak/lib/quarkus"} | json }}
    - health: {test: [/bin/bash, /run/platform/health], interval: 5, timeout: 5, start_period: {{ keycloak.timeout }}}
    - timeout: {{ keycloak.timeout }}
    - require:
      - sls: containers
      - file: keycloak-data-folder
      - platform_secret: keycloak-secrets

# A new password reaches the database by the admin API, for which the one before is needed. So that one is kept until
# Keycloak has the new one, whatever ends a run in between.
keycloak-admin:
  keycloak.admin_password:
    - name: {{ keycloak.admin }}
    - secret: keycloak:admin_password
    - previous: {{ files }}-admin
    - require:
      - platform_container: keycloak

keycloak-admin-kept:
  platform_secret.file:
    - name: {{ files }}-admin
    - content: "{keycloak:admin_password}"
    - require:
      - keycloak: keycloak-admin

keycloak-master:
  keycloak.realm_present:
    - name: master
    - settings: {{ keycloak.brute_force | json }}
    - require:
      - keycloak: keycloak-admin

keycloak-realm:
  keycloak.realm_present:
    - name: {{ site.realm }}
    - settings: {{ site.settings | json }}
    - require:
      - keycloak: keycloak-admin
{% for name, description in keycloak.roles.items() %}
keycloak-role-{{ name }}:
  keycloak.role_present:
    - name: {{ name }}
    - realm: {{ site.realm }}
    - description: {{ description | json }}
    - require:
      - keycloak: keycloak-realm
    - require_in:
      - keycloak: keycloak-user
{% endfor %}
{%- for name, client in site.clients.items() %}
keycloak-client-{{ name }}:
  keycloak.client_present:
    - name: {{ name }}
    - realm: {{ site.realm }}
    - settings: {{ client.settings | json }}
    - secret: {{ client.secret }}
    - require:
      - keycloak: keycloak-realm

keycloak-mapper-{{ name }}:
  keycloak.mapper_present:
    - name: realm roles
    - realm: {{ site.realm }}
    - client: {{ name }}
    - settings: {{ site.mapper | json }}
    - require:
      - keycloak: keycloak-client-{{ name }}
{% endfor %}
keycloak-user:
  keycloak.first_user_present:
    - name: {{ site.user.name }}
    - realm: {{ site.realm }}
    - settings: {{ site.user.settings | json }}
    - roles: {{ site.user.roles | json }}
    - password: keycloak:realm_admin_password
{% for who, person in site.check_people.items() %}
keycloak-check-{{ who }}:
  keycloak.user_present:
    - name: {{ person.name }}
    - realm: {{ site.realm }}
    - settings: {{ person.settings | json }}
    - roles: {{ person.roles | json }}
    - password: {{ site.check_password }}
    - require:
      - keycloak: keycloak-user
{% endfor %}
{% else %}
keycloak-elsewhere:
  test.nop:
    - comment: Keycloak runs on another host
{% endif %}
