# One NUMA node with two CPUs: each instance gets one of them.
ollama:
  instances:
    node1: {numa_node: 0, cpus: [0]}
    node0: {numa_node: 0, cpus: [1]}
  num_parallel: 1
  memory_reserve_mib: 512
models:
  num_ctx: 2048
  insecure_registries: ["10.89.77.10:5000"]
