# Small models, answers and floors that fit them: the real ones score 0.18 and more, the random ones 0.07 and less. A first
# run takes some minutes on two CPUs: both instances side by side, twice seven short answers a model.
benchmark:
  baseline_models:
    - 10.89.77.10:5000/library/gemma3-270m:q4_k_m
    - 10.89.77.10:5000/library/gemma3-270m:q8_0
    - 10.89.77.10:5000/library/gemma3-270m:f16
    - 10.89.77.10:5000/library/noise:1
  candidate_models:
    - {name: "10.89.77.10:5000/library/gemma3-coder-270m:q5_0", category: coding}
    - {name: "10.89.77.10:5000/library/gemma3-coder-270m:q5_1", category: coding}
    - {name: "10.89.77.10:5000/library/gemma3-coder-270m:bf16", category: coding}
    - {name: "10.89.77.10:5000/library/noise-coder:2", category: coding}
    - {name: "10.89.77.10:5000/library/gemma3-copy:q4_k_m", category: general}
  # Six quantisations of one base model: what each serves as is said, not guessed.
  category_overrides:
    10.89.77.10:5000/library/gemma3-270m:q4_k_m: general
    10.89.77.10:5000/library/gemma3-270m:q8_0: general
    10.89.77.10:5000/library/gemma3-270m:f16: general
  num_predict: 40
  repeats: 2
  # The machine is never quiet: other hosts of the lab, and whoever works on it, are on the same CPUs.
  disturbance: {repeats: 1, max_steal: 0.3, max_others: 0.5}
  num_ctx: 2048
  thresholds:
    min_tokens_per_sec: 2.0
    min_quality_score: 0.12
    min_composite_score: 0.2
