# Every host gets the same settings; its roles come from platform:hosts. No secret is kept in pillar.
# A server without a master calls itself `single`, and has settings of its own.
base:
  'not single':
    - match: compound
    - platform
    - slots
  single:
    - single
