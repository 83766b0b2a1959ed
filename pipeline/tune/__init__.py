"""The tune stage: trials through Ray Tune and Optuna, kept as JSON records of our own."""
