# The platform's own nftables table: loaded now, and before the network at every start.
{% set ruleset = salt["platform_firewall.ruleset"]() %}
firewall-packages:
  pkg.installed:
    - pkgs: {{ pillar.firewall.packages[grains.os_family] | json }}

firewall-rules:
  file.managed:
    - name: /etc/nftables.d/ai_platform.nft
    - contents: {{ ruleset | json }}
    - mode: "0644"
    - makedirs: true
    - check_cmd: /usr/sbin/nft --check --file
    # As in `containers`: phases side by side may make its folder in one moment.
    - retry: {attempts: 2, interval: 1}
    - require:
      - pkg: firewall-packages

firewall-loaded:
  platform_firewall.loaded:
    - name: /etc/nftables.d/ai_platform.nft
    - digest: {{ salt["platform_firewall.digest"]() }}
    - require:
      - file: firewall-rules

firewall-service:
  file.managed:
    - name: /etc/systemd/system/ai-platform-firewall.service
    - source: salt://firewall/files/ai-platform-firewall.service
    - mode: "0644"
  service.running:
    - name: ai-platform-firewall
    - enable: true
    - require:
      - file: firewall-service
      - platform_firewall: firewall-loaded
