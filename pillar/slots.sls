# The six places that hold a model in memory. The benchmark fills them; slots 5 and 6 rotate: naming a model
# there (with its tag) and deploying the models phase replaces it, null gives the place back to the benchmark.
slots:
  5: {model: null}
  6: {model: null}
