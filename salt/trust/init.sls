# The host, and what mounts its bundle of authorities, trusts the certificates of the platform's public names.
trust-packages:
  pkg.installed:
    - pkgs: [ca-certificates]

trust-authority:
  platform_ca.trusted:
    - require:
      - pkg: trust-packages
