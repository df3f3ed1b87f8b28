# A host says that its Vault is sealed. What the event claims is not used: the runner goes by pillar.
vault-unseal:
  runner.vault_server.unseal:
    - args:
        - automatic: true
