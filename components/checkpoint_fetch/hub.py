"""Checkpoints from the Hugging Face Hub, through huggingface_hub's own client and cache layout.

The revision is resolved to a commit first, and everything after that names the commit. Files land
in the cache that HF_HOME (or HF_HUB_CACHE) names, where every other Hugging Face tool finds them,
and every file is checked against the digest that the hub publishes. HF_ENDPOINT names a mirror.
The token comes from HF_TOKEN and from nowhere else.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, get_session

from components.checkpoint_fetch.ranged import Download, Interrupted, Refused, exclusive
from components.checkpoint_fetch.sources import SourceFile, matches
from components.lib.contract import UserError

DEFAULT_ENDPOINT = "https://huggingface.co"
TIMEOUT_S = 30.0
_LICENCES = {
    "nvidia": "the NVIDIA Open Model License",
    "google-t5": "Apache 2.0 (no acceptance needed)",
}


class Hub:
    """A hub as the environment describes it."""

    def __init__(self, env: Mapping[str, str] | None = None) -> None:
        env = os.environ if env is None else env
        self.endpoint = (env.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        self.token = env.get("HF_TOKEN") or None
        home = env.get("HF_HOME") or str(Path("~/.cache/huggingface").expanduser())
        self.cache = Path(env.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()

    @property
    def auth(self) -> str | bool:
        """The token, or False: no token, and none from huggingface_hub's own files either."""
        return self.token or False

    def listing(self, repo: str, revision: str) -> tuple[str, list[SourceFile]]:
        """The commit that ``revision`` names now, and its files with sizes and digests."""
        with self.explained(repo, revision):
            info = HfApi(endpoint=self.endpoint, token=self.auth).model_info(
                repo, revision=revision, files_metadata=True, timeout=TIMEOUT_S, token=self.auth
            )
        files = []
        for entry in info.siblings or []:
            lfs = entry.lfs
            digest = f"sha256:{lfs.sha256}" if lfs else f"git:{entry.blob_id or ''}"
            size = int(lfs.size if lfs else entry.size or 0)
            files.append(SourceFile(path=entry.rfilename, bytes=size, digest=digest))
        if not info.sha:
            raise UserError(f"{self.endpoint} did not say which commit '{revision}' of {repo} is.")
        return info.sha, files

    def fetch(
        self,
        repo: str,
        commit: str,
        files: Sequence[SourceFile],
        advance: Callable[[int], None],
        *,
        workers: int = 8,
        part_bytes: int | None = None,
        wait_s: float = 0.5,
    ) -> tuple[dict[str, Path], int]:
        """Path -> verified local file, and how many bytes came over the network.

        Raises UserError; what was fetched before stays for the next attempt.
        """
        moved = 0
        lock = threading.Lock()

        def count(amount: int) -> None:
            with lock:
                advance(amount)

        local: dict[str, Path] = {}
        with ThreadPoolExecutor(workers, thread_name_prefix="fetch") as pool:
            for file in sorted(files, key=lambda file: -file.bytes):
                blob = self._folder(repo) / "blobs" / file.digest.partition(":")[2]
                with exclusive(blob.with_name(blob.name + ".cosmos-lock")):
                    if blob.is_file() and matches(blob, file):
                        count(file.bytes)
                    else:
                        blob.unlink(missing_ok=True)
                        extra = {"part_bytes": part_bytes} if part_bytes else {}
                        download = Download(
                            blob,
                            file.bytes,
                            self._address(repo, commit, file.path),
                            _open,
                            count,
                            wait_s=wait_s,
                            **extra,
                        )
                        self._complete(download, pool, repo, commit, file)
                        moved += file.bytes
                local[file.path] = self._link(repo, commit, file.path, blob)
        return local, moved

    def remember(self, repo: str, revision: str, commit: str) -> None:
        """Note in the cache which commit a branch is, as huggingface_hub does."""
        if revision != commit:
            ref = self._folder(repo) / "refs" / revision
            ref.parent.mkdir(parents=True, exist_ok=True)
            ref.write_text(commit)

    def _complete(
        self, download: Download, pool: ThreadPoolExecutor, repo: str, commit: str, file: SourceFile
    ) -> None:
        with self.explained(repo, commit, file.path):
            partial = download.run(pool)
        if not matches(partial, file):
            download.discard()
            raise UserError(
                f"{file.path} of {repo} at {commit} did not arrive as published: its content does "
                f"not have the digest {file.digest}. It was thrown away; run again, and if it "
                f"comes back check the mirror {self.endpoint}."
            )
        partial.replace(download.target)
        download.journal.unlink(missing_ok=True)

    def _folder(self, repo: str) -> Path:
        return self.cache / ("models--" + repo.replace("/", "--"))

    def _link(self, repo: str, commit: str, path: str, blob: Path) -> Path:
        """The file under its name in `snapshots/<commit>`, a relative link to the blob."""
        pointer = self._folder(repo) / "snapshots" / commit / path
        if ".." in Path(path).parts or (pointer.is_absolute() and Path(path).is_absolute()):
            raise UserError(f"{repo} lists the unsafe path '{path}'.")
        pointer.parent.mkdir(parents=True, exist_ok=True)
        temporary = pointer.with_name(f"{pointer.name}.{os.getpid()}.link")
        temporary.unlink(missing_ok=True)
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
        temporary.replace(pointer)
        return pointer

    def _address(
        self, repo: str, commit: str, path: str
    ) -> Callable[[bool], tuple[str, Mapping[str, str]]]:
        """URL and headers of a file: asked of the hub once, and again after a URL expired."""
        lock = threading.Lock()
        known: list[tuple[str, Mapping[str, str]]] = []

        def address(renew: bool) -> tuple[str, Mapping[str, str]]:
            with lock:
                if renew or not known:
                    known[:] = [self._locate(repo, commit, path)]
                return known[0]

        return address

    def _locate(self, repo: str, commit: str, path: str) -> tuple[str, Mapping[str, str]]:
        url = hf_hub_url(repo, path, revision=commit, endpoint=self.endpoint)
        metadata = get_hf_file_metadata(
            url, token=self.auth, timeout=TIMEOUT_S, endpoint=self.endpoint, retry_on_errors=True
        )
        # The token is for the hub; a content network gets the signed URL alone.
        same = urlsplit(metadata.location).netloc == urlsplit(self.endpoint).netloc
        headers = build_hf_headers(token=self.auth if same else False)
        return metadata.location, {**headers, "Accept-Encoding": "identity"}

    @contextmanager
    def explained(self, repo: str, revision: str, path: str = "") -> Iterator[None]:
        """Turn the client's exceptions into sentences that name the repository."""
        what = f"{path} of {repo}" if path else repo
        page = f"{DEFAULT_ENDPOINT}/{repo}"  # licences are accepted there, not at a mirror
        owner = repo.partition("/")[0]
        licence = _LICENCES.get(owner, "its licence")
        try:
            yield
        except GatedRepoError as error:
            raise UserError(self._gated(repo, page, licence)) from error
        except RevisionNotFoundError as error:
            raise UserError(
                f"{repo} has no revision '{revision}' (404). See {page}/commits/main."
            ) from error
        except EntryNotFoundError as error:
            raise UserError(f"{repo} has no file {path} at '{revision}' (404).") from error
        except RepositoryNotFoundError as error:
            raise UserError(self._missing(repo, page, licence)) from error
        except (HfHubHTTPError, Refused) as error:
            raise UserError(self._refused(error, what, repo, page, licence)) from error
        except OfflineModeIsEnabled as error:
            raise UserError(
                f"{what} is not in the local cache {self.cache} and HF_HUB_OFFLINE is set."
            ) from error
        except (httpx2.TransportError, Interrupted) as error:
            raise UserError(
                f"The connection to {self.endpoint} for {what} failed: {error}. Run again to go on "
                "where it stopped; HF_ENDPOINT names a mirror."
            ) from error

    def _gated(self, repo: str, page: str, licence: str) -> str:
        if self.token is None:
            return (
                f"{repo} is gated and HF_TOKEN is not set (401). Accept {licence} at {page}, then "
                "set HF_TOKEN to a token of that account."
            )
        return (
            f"{repo} is gated and the account of HF_TOKEN has no access (403). Accept {licence} at "
            f"{page} with that account."
        )

    def _missing(self, repo: str, page: str, licence: str) -> str:
        if self.token is None:
            return (
                f"{repo} was not found, or it needs a login: HF_TOKEN is not set (401 or 404). "
                f"Check the name; if it is gated, accept {licence} at {page} and set HF_TOKEN."
            )
        return (
            f"{self.endpoint} has no repository {repo}, or the token in HF_TOKEN may not see it "
            "(404). Check the name."
        )

    def _refused(
        self, error: HfHubHTTPError | Refused, what: str, repo: str, page: str, licence: str
    ) -> str:
        status = error.status if isinstance(error, Refused) else _status(error)
        if status == 401:
            return (
                f"{self.endpoint} does not accept the token in HF_TOKEN for {repo} (401). Make a "
                f"new one, accept {licence} at {page}, and set HF_TOKEN."
            )
        if status == 403:
            return self._gated(repo, page, licence)
        if status == 404:
            return f"{self.endpoint} has no {what} (404)."
        return f"{self.endpoint} answered {status} for {what}. Try again later."


def _status(error: HfHubHTTPError) -> int:
    response: Any = getattr(error, "response", None)
    return int(response.status_code) if response is not None else 0


def _open(url: str, headers: Mapping[str, str]) -> Any:
    return get_session().stream(
        "GET", url, headers=dict(headers), timeout=TIMEOUT_S, follow_redirects=True
    )
