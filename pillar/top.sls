# Every host gets the same settings; its roles come from platform:hosts. No secret is kept in pillar.
base:
  '*':
    - platform
    - slots
