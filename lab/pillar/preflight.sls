# Containers on one machine: the data folder is on the container's own disk, and small.
preflight:
  data_root_free_gb: 2
  data_root_mounted: false
  root_free_gb: 1
verify:
  answer_tokens: 4
  # Small models on a part of a machine that others use, too: what they compute weighs more than what they read.
  min_roofline_share: 0.02
