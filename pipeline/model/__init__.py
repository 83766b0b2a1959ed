"""Networks: built from the configuration, read from weights and checkpoints."""
