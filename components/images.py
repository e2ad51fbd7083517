"""The container images of the stages.

`IMAGE_*` are what compiled pipelines name. A mutable tag would serve stale results from KFP's
cache (its key holds the image string, not the digest), so releases compile with digests:
``cosmos-pipelines compile --image data=registry/name@sha256:…``.
"""

DATA = "cosmos-pipelines/data-python:0.2.0"
PREPROCESS = "cosmos-pipelines/preprocess-python:0.2.0"
TRAIN = "cosmos-pipelines/train-python:0.2.0"
