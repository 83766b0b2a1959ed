"""Trackers: the numbers of a run, shown in TensorBoard, MLflow or Weights & Biases."""
