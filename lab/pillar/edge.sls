# The proxy and the names. The base model of the lab's slots does not know when to stop.
nginx:
  api:
    max_tokens: 256
    requests_per_second: 500
    burst: 500
