"""Where a run's numbers go: a file, TensorBoard, W&B, the terminal."""
