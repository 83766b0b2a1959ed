"""The stage train: the driver, its workers, checkpoints, logs."""
