"""The environment variables that this project reads, each by one name.

Beside these it honours those that others define: AWS_* and SSL_CERT_FILE for the object store,
HF_TOKEN, HF_HOME and HF_ENDPOINT for the hub, WANDB_* for Weights & Biases, KF_PIPELINES_* and
KFP_* for the KFP client, KUBECONFIG for the cluster, and what torchrun sets for its ranks.
"""

from __future__ import annotations

#: Id of the pipeline run, by which its notes, jobs and report are found. Set by the pipelines.
RUN_ID = "COSMOS_RUN_ID"
#: File that gets the sentence of the first stage that fails. Set by the local runner.
ERROR_FILE = "COSMOS_ERROR_FILE"
#: File that gets a JSON line for each finished stage. Set by the local runner.
RUN_JOURNAL = "COSMOS_RUN_JOURNAL"
#: Process whose end ends a stage. Set by the local runner.
PARENT_PID = "COSMOS_PARENT_PID"
#: Terminal on which stages draw their progress bars. Set by the command line.
PROGRESS_TTY = "COSMOS_PROGRESS_TTY"
#: Set for ranks by a launcher that reads their progress as JSON.
TRAINING_PROGRESS = "COSMOS_TRAINING_PROGRESS"
#: Training image of jobs, with its digest. Set by the pipelines.
TRAIN_IMAGE = "COSMOS_TRAIN_IMAGE"
#: Kind of GPU that training jobs ask for (node label nvidia.com/gpu.product). Set by the pipelines.
GPU_TYPE = "COSMOS_GPU_TYPE"
