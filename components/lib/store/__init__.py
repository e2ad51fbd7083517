"""Object storage: the one way bytes move between stages."""

from components.lib.store.client import ObjectInfo, ObjectStore, StoreError

__all__ = ["ObjectInfo", "ObjectStore", "StoreError"]
