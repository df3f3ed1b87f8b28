# The TLS proxy: certificate, keys and routes of the API, one configuration from the table of services. A configuration
# that NGINX refuses never takes the place of the one in use.
include:
  - firewall
{% set nginx = pillar.nginx %}
{% set context = salt["nginx.context"]() %}
nginx-packages:
  pkg.installed:
    - pkgs: {{ nginx.packages[grains.os_family] | json }}

nginx-folders:
  file.directory:
    - names: [{{ context.folder }}, {{ context.folder }}/tls, {{ context.folder }}/lua, {{ context.etc }}/conf.d]
    - mode: "0755"
    - makedirs: true
    - require: [pkg: nginx-packages]

nginx-certificate:
  nginx.certificate_valid:
    - name: {{ context.certificate }}
    - require: [file: nginx-folders]

nginx-upstream-authority:
  file.managed:
    - name: {{ context.folder }}/upstream-authority.pem
    - contents: {{ salt["nginx.upstream_authority"]() | json }}
    - mode: "0644"
    - require: [file: nginx-folders]

nginx-lua:
  file.recurse:
    - name: {{ context.folder }}/lua
    - source: salt://nginx/files/lua
    - file_mode: "0644"
    - clean: true
    - require: [file: nginx-folders]

nginx-api-keys:
  nginx.api_keys:
    - name: {{ context.folder }}/keys.json
    - require: [file: nginx-folders]

# Read again by NGINX itself, as the keys are.
nginx-api-routes:
  file.serialize:
    - name: {{ context.folder }}/routes.json
    - dataset: {{ salt["nginx.routes"]() | json }}
    - serializer: json
    - mode: "0644"
    - require: [file: nginx-folders]

# What the distribution serves until there is something else.
nginx-default-site:
  file.absent:
    - names: [{{ context.etc }}/sites-enabled/default, {{ context.etc }}/conf.d/default.conf]
    - require: [pkg: nginx-packages]

nginx-config:
  file.managed:
    - name: {{ context.etc }}/nginx.conf
    - source: salt://nginx/files/nginx.conf
    - template: jinja
    - context: {{ context | json }}
    - mode: "0644"
    - check_cmd: nginx -t -q -c
    - require:
      - nginx: nginx-certificate
      - nginx: nginx-api-keys
      - file: nginx-upstream-authority
      - file: nginx-lua
      - file: nginx-api-routes
      - file: nginx-default-site

nginx-restarts:
  file.managed:
    - name: /etc/systemd/system/nginx.service.d/restart.conf
    - contents: "# One that was killed comes back. Managed by Salt.\n[Service]\nRestart=on-failure\nRestartSec=1\n"
    - mode: "0644"
    - makedirs: true

nginx-service:
  service.running:
    - name: nginx
    - enable: true
    - require:
      - file: nginx-config
      - file: nginx-restarts
      - platform_firewall: firewall-loaded

nginx-loaded:
  nginx.loaded:
    - name: {{ context.etc }}/nginx.conf
    - require: [service: nginx-service]

nginx-renewal:
  file.managed:
    - names:
      - /etc/systemd/system/ai-platform-certificate.service:
        - source: salt://nginx/files/ai-platform-certificate.service
      - /etc/systemd/system/ai-platform-certificate.timer:
        - source: salt://nginx/files/ai-platform-certificate.timer
    - mode: "0644"
  service.running:
    - name: ai-platform-certificate.timer
    - enable: true
    - require: [file: nginx-renewal]
