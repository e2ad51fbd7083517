"""The fake hub, met by a plain HTTP client and by huggingface_hub."""

from __future__ import annotations

import hashlib
import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tests.servers.hub import FakeHub, fake_hub, git_id

REPO = "owner/model"
WEIGHTS = bytes(range(256)) * 1000
FILES = {"config.json": b"{}", "model.pt": WEIGHTS}
Download = Callable[..., bytes]


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    """A hub with one repository."""
    with fake_hub() as server:
        server.repo(REPO, FILES)
        yield server


@pytest.fixture
def download(hub: FakeHub, tmp_path: Path) -> Download:
    """A file by the official client, into a cache of its own."""

    def get(
        name: str, repo: str = REPO, *, revision: str = "main", token: str | bool = False
    ) -> bytes:
        path = hf_hub_download(
            repo, name, revision=revision, cache_dir=tmp_path, endpoint=hub.url, token=token
        )
        return Path(path).read_bytes()

    return get


def ask(
    url: str, method: str = "GET", headers: dict[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of an answer; redirects are not followed."""
    split = urlsplit(url)
    connection = http.client.HTTPConnection(split.netloc, timeout=10)
    connection.request(method, split.path, headers=headers or {})
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, response.headers, data


def test_the_official_client_reads_the_listing(hub: FakeHub) -> None:
    api = HfApi(endpoint=hub.url, token=False)
    info = api.model_info(REPO, revision="main", files_metadata=True)
    assert info.sha == hub.repos[REPO].refs["main"]
    files = {file.rfilename: file for file in info.siblings or []}
    sizes = {name: file.size for name, file in files.items()}
    assert sizes == {"config.json": 2, "model.pt": 256_000}
    assert files["config.json"].blob_id == git_id(b"{}") and files["config.json"].lfs is None
    lfs = files["model.pt"].lfs
    assert lfs is not None and lfs.sha256 == hashlib.sha256(WEIGHTS).hexdigest()
    by_commit = api.model_info(REPO, revision=info.sha, files_metadata=True)
    assert by_commit.siblings == info.siblings


def test_the_official_client_downloads_small_files_and_large(
    hub: FakeHub, download: Download
) -> None:
    assert {name: download(name) for name in FILES} == FILES
    assert hub.served == sum(map(len, FILES.values()))
    hub.forget()
    commit = hub.repos[REPO].refs["main"]
    assert download("model.pt", revision=commit) == WEIGHTS
    assert (hub.served, hub.requests) == (0, []), "what is in the cache is not asked for again"


def test_git_names_a_file_as_the_hub_does() -> None:
    """``printf hello | git hash-object --stdin``"""
    assert git_id(b"hello") == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"


def test_a_large_file_lies_on_another_host(hub: FakeHub) -> None:
    url = hf_hub_url(REPO, "model.pt", endpoint=hub.url)
    for method in ("HEAD", "GET"):
        status, headers, data = ask(url, method)
        assert (status, data) == (302, b"")
        assert headers["X-Linked-Size"] == "256000"
        assert headers["X-Linked-Etag"] == f'"{hashlib.sha256(WEIGHTS).hexdigest()}"'
        assert headers["X-Repo-Commit"] == hub.repos[REPO].refs["main"]
    place = headers["Location"]
    assert urlsplit(place).hostname != urlsplit(url).hostname
    assert ask(place)[::2] == (200, WEIGHTS)
    assert ask(place, headers={"Authorization": "Bearer hf_good"})[0] == 400


def test_ranges_of_a_file(hub: FakeHub) -> None:
    _, headers, _ = ask(hf_hub_url(REPO, "model.pt", endpoint=hub.url))
    place = headers["Location"]
    status, headers, data = ask(place, headers={"Range": "bytes=10-19"})
    assert (status, data) == (206, WEIGHTS[10:20])
    assert headers["Content-Range"] == "bytes 10-19/256000"
    assert ask(place, headers={"Range": "bytes=255990-"})[2] == WEIGHTS[-10:]
    assert ask(place, headers={"Range": "bytes=255990-999999"})[2] == WEIGHTS[-10:]
    hub.faults.ignore_ranges = True
    assert ask(place, headers={"Range": "bytes=10-19"})[::2] == (200, WEIGHTS)


@pytest.mark.parametrize(
    ("repo", "name", "revision", "token", "kind", "status"),
    [
        ("owner/gated", "a.pt", "main", False, GatedRepoError, 401),
        ("owner/gated", "a.pt", "main", "hf_no_access", GatedRepoError, 403),
        ("owner/none", "a.pt", "main", False, RepositoryNotFoundError, 401),
        ("owner/none", "a.pt", "main", "hf_good", RepositoryNotFoundError, 404),
        (REPO, "a.pt", "v9", False, RevisionNotFoundError, 404),
        (REPO, "a.pt", "main", False, EntryNotFoundError, 404),
        (REPO, "model.pt", "main", "hf_wrong", HfHubHTTPError, 401),
    ],
)
def test_the_official_client_tells_the_refusals_apart(
    hub: FakeHub, repo: str, name: str, revision: str, token: str | bool,
    kind: type[HfHubHTTPError], status: int,
) -> None:  # fmt: skip
    hub.repo("owner/gated", {"a.pt": b"x"}, gated=True)
    url = hf_hub_url(repo, name, revision=revision, endpoint=hub.url)
    from huggingface_hub import get_hf_file_metadata

    with pytest.raises(kind) as error:
        get_hf_file_metadata(url, token=token, endpoint=hub.url)
    assert error.value.response.status_code == status
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    assert ask(url, "HEAD", headers)[0] == status


def test_a_token_with_access_opens_what_is_gated(hub: FakeHub, download: Download) -> None:
    hub.repo("owner/gated", {"a.pt": b"x"}, gated=True)
    assert download("a.pt", "owner/gated", token="hf_good") == b"x"
    api = HfApi(endpoint=hub.url, token=False)
    with pytest.raises(GatedRepoError):
        api.model_info("owner/gated", revision="main")


def test_a_branch_moves_and_a_commit_stays(hub: FakeHub, download: Download) -> None:
    first = hub.repos[REPO].refs["main"]
    second = hub.repos[REPO].commit({"config.json": b"[]"})
    assert first != second
    assert download("config.json") == b"[]"
    assert download("config.json", revision=first) == b"{}"


def test_faults_of_the_content_network(hub: FakeHub) -> None:
    place = f"{hub.url}/cdn/{hashlib.sha256(WEIGHTS).hexdigest()}"
    hub.faults.busy, hub.faults.expired = 2, 1
    assert [ask(place)[0] for _ in range(4)] == [503, 503, 403, 200]
    hub.faults.corrupt = True
    damaged = ask(place)[2]
    assert len(damaged) == len(WEIGHTS)
    assert [i for i, (a, b) in enumerate(zip(damaged, WEIGHTS, strict=True)) if a != b] == [500]
    hub.faults.corrupt = False
    hub.faults.cut_after = 100_000
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        ask(place)
    rest = ask(place, headers={"Range": "bytes=200000-"})
    assert rest[::2] == (206, WEIGHTS[200_000:]), "each connection may bring that much"


def test_what_is_counted(hub: FakeHub) -> None:
    hub.forget()
    assert ask(hf_hub_url(REPO, "config.json", endpoint=hub.url))[2] == b"{}"
    assert hub.requests == [("GET", f"/{REPO}/resolve/main/config.json")]
    assert hub.served == 2
    status, _, data = ask(f"{hub.url}/api/models/{REPO}/revision/main")
    assert status == 200 and json.loads(data)["id"] == REPO
    assert hub.served == 2, "only contents of files count"
