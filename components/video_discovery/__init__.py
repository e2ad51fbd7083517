"""Stage: find the videos under a source, check them, and describe them in a manifest."""
