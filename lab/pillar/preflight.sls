# Containers on one machine: the data folder is on the container's own disk, and small.
preflight:
  data_root_free_gb: 2
  data_root_mounted: false
  root_free_gb: 1
verify:
  answer_tokens: 4
