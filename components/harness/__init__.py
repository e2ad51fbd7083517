"""What runs stages: the task body, overrides, run notes, the run report."""
