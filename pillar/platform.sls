# The site: edit the domain and the addresses, and that is all a first deploy needs.
# Every other setting has a default; docs/pillar.md lists them. A setting goes here under its own key.
platform:
  name: AI Platform
  domain: example.com
  master:
    address: 192.0.2.10
  # The minion ids and what each host is. One host may hold several roles.
  hosts:
    ai_server:
      address: 192.0.2.100
      roles: [ai_server]
    nginx_proxy:
      address: 192.0.2.30
      roles: [nginx_proxy]
    coredns_host:
      address: 192.0.2.29
      roles: [coredns_host]
