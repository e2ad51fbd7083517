"""What our pods find in their namespace by name: ServiceAccounts, Secrets and their keys.

`manifests/` makes the accounts and shows the Secrets; a test compares them with this.
"""

from __future__ import annotations

from components.lib.contract import Frozen

#: Runs the pipelines' steps, and may make training jobs.
STEP_ACCOUNT = "cosmos-pipeline"
#: Runs the ranks, and may do nothing.
RANK_ACCOUNT = "cosmos-trainer"


class SecretUse(Frozen):
    """A Secret: the environment variable that each key fills.

    ``optional``: pods start without it. ``optional_keys`` may be missing even where it is there.
    """

    name: str
    variables: dict[str, str]
    optional: bool = False
    optional_keys: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that it must have where it is there."""
        return tuple(key for key in self.variables if key not in self.optional_keys)


STORE = SecretUse(
    name="cosmos-s3",
    variables={
        "endpoint": "AWS_ENDPOINT_URL",
        "access-key": "AWS_ACCESS_KEY_ID",
        "secret-key": "AWS_SECRET_ACCESS_KEY",
        "region": "AWS_REGION",
    },
    optional_keys=("region",),
)
HUGGINGFACE = SecretUse(name="cosmos-huggingface", variables={"token": "HF_TOKEN"}, optional=True)
WANDB = SecretUse(name="cosmos-wandb", variables={"api-key": "WANDB_API_KEY"}, optional=True)
