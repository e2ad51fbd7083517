"""The commands of `cosmos-pipelines`, one module each; heavy imports stay inside the functions."""
