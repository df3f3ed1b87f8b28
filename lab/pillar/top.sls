# The lab's pillar: what differs from a site of one's own. It shadows the checkout's files of the same name.
base:
  '*':
    - platform
    - artifacts
    - ollama
    - slots
    - benchmark
    - preflight
    - edge
    - openclaw
