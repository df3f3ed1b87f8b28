# A host says that a slot is not loaded. What the event claims is not used: each AI server looks for itself.
slots-tend:
  runner.ai_platform.tend: []
