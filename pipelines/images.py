"""The images that compiled pipelines name (defined beside the stages that run in them)."""

from components.images import DATA, PREPROCESS, TRAIN

__all__ = ["DATA", "PREPROCESS", "TRAIN"]
