"""SimCLR (Chen et al. 2020), the baseline: both views through the same network."""

from __future__ import annotations

from sdclr.methods.method import Method


class SimCLRMethod(Method):
    """NT-Xent (`sdclr.loss`) between two views; all of it is the base's."""
