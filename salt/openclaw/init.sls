# The Telegram bot: its packages in an environment of their own, a user of its own, a confined service. Where Vault holds no
# token of a bot, nothing is installed, and what was is stopped, which a dry run that cannot ask Vault does not foresee.
{% set openclaw = pillar.openclaw %}
{% set folder = pillar.platform.data_root ~ "/openclaw" %}
{% set token_file = "/etc/openclaw/token" %}
{% if not salt["vault_server.is_host"]() %}
openclaw-elsewhere:
  test.nop:
    - comment: The Telegram bot runs on another host
{% elif salt["platform_secret.optional"]("openclaw", "telegram_token")
     or salt["platform_secret.kept"]("openclaw", "telegram_token", token_file) %}
openclaw-python:
  pkg.installed:
    - pkgs: {{ pillar.salt_minion.packages[grains.os_family] | json }}

openclaw-user:
  user.present:
    - name: openclaw
    - system: true
    - usergroup: true
    - home: {{ folder }}
    - createhome: false
    - shell: /usr/sbin/nologin
    - fullname: Telegram bot

openclaw-environment:
  salt_venv.installed:
    - name: /opt/openclaw
    - requirements: salt://openclaw/files/requirements.txt
    - python: {{ pillar.salt_minion.python[grains.os_family] }}
    - wheelhouse: "{{ pillar.salt_minion.wheelhouse }}"
    - require:
      - pkg: openclaw-python

openclaw-folders:
  file.directory:
    - names: [{{ folder }}, /etc/openclaw]
    - user: root
    - group: openclaw
    - mode: "0750"
    - makedirs: true
    - require:
      - user: openclaw-user

openclaw-program:
  file.managed:
    - name: {{ folder }}/bot.py
    - source: salt://openclaw/files/bot.py
    - mode: "0644"
    - require:
      - file: openclaw-folders

openclaw-settings:
  file.serialize:
    - name: {{ folder }}/config.json
    - serializer: json
    - serializer_opts:
        - indent: 2
        - sort_keys: true
    - dataset:
        telegram_url: {{ openclaw.telegram_url }}
        token_file: {{ token_file }}
        ollama_url: {{ salt["ollama.instances"]()[pillar.slots[openclaw.slot].instance].url }}
        model: slot-{{ openclaw.slot }}
        system: {{ openclaw.system | json }}
        allowed_users: {{ openclaw.allowed_users | json }}
        history: {{ openclaw.history }}
        answer_tokens: {{ openclaw.answer_tokens }}
        timeout: {{ openclaw.timeout }}
    - user: root
    - group: openclaw
    - mode: "0640"
    - require:
      - file: openclaw-folders

openclaw-token:
  platform_secret.file:
    - name: {{ token_file }}
    - content: "{openclaw:telegram_token}"
    - user: openclaw
    - group: openclaw
    - require:
      - file: openclaw-folders

openclaw-unit:
  file.managed:
    - name: /etc/systemd/system/openclaw.service
    - source: salt://openclaw/files/openclaw.service
    - template: jinja
    - mode: "0644"
    - context:
        folder: {{ folder }}

# It has started once Telegram has said who the bot is, or has not answered for half a minute.
openclaw:
  service.running:
    - enable: true
    - watch:
      - salt_venv: openclaw-environment
      - file: openclaw-program
      - file: openclaw-settings
      - platform_secret: openclaw-token
      - file: openclaw-unit
{% else %}
openclaw-skipped:
  notice.shown:
    - text: >-
        No Telegram bot: Vault has no telegram_token at openclaw. docs/openclaw.md says how to put the one of @BotFather
        there; the next deploy installs the bot.

openclaw-token:
  file.absent:
    - name: {{ token_file }}
{% if salt["service.available"]("openclaw") %}
openclaw:
  service.dead:
    - enable: false
{% endif %}
{% endif %}
