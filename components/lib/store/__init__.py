"""Object storage: the one way bytes move between stages."""

from components.lib.store.client import ObjectStore
from components.lib.store.connection import StoreSettings
from components.lib.store.errors import (
    ObjectCorrupt,
    ObjectExists,
    ObjectMissing,
    StoreError,
)
from components.lib.store.session import ObjectInfo

__all__ = [
    "ObjectCorrupt",
    "ObjectExists",
    "ObjectInfo",
    "ObjectMissing",
    "ObjectStore",
    "StoreError",
    "StoreSettings",
]
