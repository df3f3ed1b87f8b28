"""What takes long, or a quiet machine: `make soak`, on a lab that is up."""
