"""Logic shared by the execution modules, states, runners and the pillar."""
