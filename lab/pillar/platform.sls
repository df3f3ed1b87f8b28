# The lab's hosts. Addresses follow LAB_SUBNET.
platform:
  name: AI Platform
  domain: lab.internal
  master:
    address: 10.89.77.10
  hosts:
    ai_server:
      address: 10.89.77.100
      roles: [ai_server]
    nginx_proxy:
      address: 10.89.77.30
      roles: [nginx_proxy]
    coredns_host:
      address: 10.89.77.29
      roles: [coredns_host]
