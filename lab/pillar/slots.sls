# Slots 5 and 6 rotate: name a model of the site's registry and deploy the phase `models`.
slots:
  5: {model: null}
  6: {model: null}
aliases:
  coder-128k: {num_ctx: 2048}
  coder-32k: {num_ctx: 2048}
  coder-rotate: {num_ctx: 2048}
  llama-family: {num_ctx: 2048}
  gemma-family: {num_ctx: 2048}
  embedding: {model: "10.89.77.10:5000/library/all-minilm:l6-v2", num_ctx: 512}
