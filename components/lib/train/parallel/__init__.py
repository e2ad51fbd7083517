"""Process groups, sharded and replicated weights, gradients."""
