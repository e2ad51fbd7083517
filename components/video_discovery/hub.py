"""Videos of a Hugging Face data set, at one pinned commit.

The names and checksums come from the hub's listing; files are fetched through its cache (HF_HOME)
and put into object storage under their checksum, where later stages read them. A video that is
there already is not fetched again.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from components.lib.contract import UserError
from components.lib.store import ObjectStore
from components.lib.video.container import VIDEO_SUFFIXES
from components.video_discovery.entries import MAX_SIDECAR_BYTES, Entry, order_key

_SOURCE = re.compile(
    r"hf://datasets/(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w./-]+?))?(/(?P<folder>.*))?\Z"
)


class HubSource:
    """``hf://datasets/owner/name[@revision][/folder]``. Keys are paths in the repository."""

    def __init__(self, source: str, store: ObjectStore, storage_root: str) -> None:
        from huggingface_hub import HfApi

        match = _SOURCE.match(source)
        if match is None:
            raise UserError(
                f"'{source}' is not of the form hf://datasets/owner/name[@revision][/folder]."
            )
        self.name, self.single = source, False
        self.repo = match["repo"]
        self.folder = (match["folder"] or "").strip("/")
        self.store = store
        self.pool = f"{storage_root.rstrip('/')}/video_discovery/pool/"
        self.api = HfApi()
        info = self._call(self.api.dataset_info, self.repo, revision=match["revision"])
        self.commit = str(info.sha)

    def _call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Call the hub; its refusals become sentences that say what to do."""
        import httpx
        from huggingface_hub.errors import (
            EntryNotFoundError,
            GatedRepoError,
            HfHubHTTPError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        page = f"https://huggingface.co/datasets/{self.repo}"
        try:
            return function(*args, **kwargs)
        except GatedRepoError as error:
            raise UserError(
                f"The data set {self.repo} is gated. Accept its licence at {page} and set HF_TOKEN."
            ) from error
        except RepositoryNotFoundError as error:
            raise UserError(
                f"There is no data set {self.repo} on the hub, or HF_TOKEN may not see it."
            ) from error
        except (RevisionNotFoundError, EntryNotFoundError) as error:
            raise UserError(f"{self.name}: the hub has no such revision or folder.") from error
        except (HfHubHTTPError, httpx.HTTPError) as error:
            raise UserError(
                f"The hub could not be asked about {self.repo}: {error}. Check the network and "
                "HF_ENDPOINT, then run again."
            ) from error

    def entries(self) -> Iterator[Entry]:
        from huggingface_hub.hf_api import RepoFile

        listing = self._call(
            lambda: list(
                self.api.list_repo_tree(
                    self.repo,
                    path_in_repo=self.folder or None,
                    recursive=True,
                    revision=self.commit,
                    repo_type="dataset",
                )
            )
        )
        files = [item for item in listing if isinstance(item, RepoFile)]
        for item in sorted(files, key=lambda item: order_key(item.path)):
            if not any(part.startswith(".") for part in item.path.split("/")):
                yield Entry(item.path, item.size, item.lfs.sha256 if item.lfs else item.blob_id)

    def uri(self, entry: Entry, sha256: str) -> str:
        suffix = Path(entry.key).suffix.lower()
        return f"{self.pool}{sha256}{suffix if suffix in VIDEO_SUFFIXES else ''}"

    @contextmanager
    def local(self, entry: Entry, folder: Path) -> Iterator[Path]:
        yield self._fetch(entry.key)

    def _fetch(self, key: str) -> Path:
        from huggingface_hub import hf_hub_download

        return Path(
            self._call(hf_hub_download, self.repo, key, repo_type="dataset", revision=self.commit)
        )

    def read(self, key: str) -> bytes | None:
        exists = self._call(
            self.api.file_exists, self.repo, key, repo_type="dataset", revision=self.commit
        )
        if not exists:
            return None
        data = self._fetch(key).read_bytes()
        if len(data) > MAX_SIDECAR_BYTES:
            raise UserError(f"{key} describes a video but is larger than 1 MiB.")
        return data

    def publish(self, entry: Entry, path: Path, sha256: str) -> None:
        uri = self.uri(entry, sha256)
        if self.store.stat(uri) is None:
            self.store.put_file(path, uri)
