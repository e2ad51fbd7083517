"""What a user submits: pipelines, their compiled YAML, the command line and the local runner."""
