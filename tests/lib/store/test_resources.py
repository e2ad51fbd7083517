"""What transfers take: memory, time to stop, and a proper TLS connection."""

from __future__ import annotations

import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from components.lib.store import ObjectStore, StoreError
from tests.servers.faulty_proxy import FaultyProxy, faulty_proxy

MB = 1_000_000
BOTH_WAYS = """
import resource, sys
from pathlib import Path
from components.lib.store import ObjectStore
folder, root = Path(sys.argv[1]), sys.argv[2]
store = ObjectStore.from_env().with_settings(workers=2)
store.ensure_bucket("cosmos")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store.put_files([(folder / "large", f"{root}/large"), (folder / "other", f"{root}/other")])
store.get_files([(f"{root}/large", folder / "a", None), (f"{root}/other", folder / "b", None)])
with store.open_read(f"{root}/large") as stream:
    while stream.read(1 << 20):
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def test_memory_does_not_grow_with_the_file(
    storage_root: str, store_env: dict[str, str], tmp_path: Path
) -> None:
    for name in ("large", "other"):
        with (tmp_path / name).open("wb") as handle:
            handle.truncate(150 * MB)
    grown = subprocess.run(
        [sys.executable, "-c", BOTH_WAYS, str(tmp_path), storage_root],
        env=store_env,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert int(grown.stdout) < 110 * MB, "two threads with a part each, and the reader's blocks"
    assert (tmp_path / "a").stat().st_size == (tmp_path / "b").stat().st_size == 150 * MB


UPLOAD = """
import sys
from pathlib import Path
from components.lib.store import ObjectStore
print("go", flush=True)
paths = sorted(Path(sys.argv[1]).iterdir())
ObjectStore.from_env().put_files((path, f"{sys.argv[2]}/{path.name}") for path in paths)
print("finished", flush=True)
"""


def test_ctrl_c_ends_an_upload_soon(
    store: ObjectStore,
    storage_root: str,
    store_env: dict[str, str],
    tmp_path: Path,
    proxy: FaultyProxy,
) -> None:
    # The store answers nothing any more, so the upload would wait for its whole patience.
    proxy.fault = lambda number, method: "reset" if number > 1 else None
    for i in range(30):
        (tmp_path / f"{i:02d}").write_bytes(b"x" * 1000)
    process = subprocess.Popen(
        [sys.executable, "-c", UPLOAD, str(tmp_path), storage_root],
        env={**store_env, "AWS_ENDPOINT_URL": proxy.endpoint},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "go\n"
    deadline = time.monotonic() + 30
    while len(proxy.requests) < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    interrupted = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert time.monotonic() - interrupted < 30
    assert "finished" not in output
    assert errors.rstrip().endswith("KeyboardInterrupt")


def test_tls_with_a_certificate_of_ones_own(
    store: ObjectStore,
    storage_root: str,
    store_env: dict[str, str],
    tmp_path: Path,
    small_parts: int,
) -> None:
    certificate = self_signed(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, tmp_path / "key.pem")
    with faulty_proxy(store_env["AWS_ENDPOINT_URL"], context) as proxy:
        endpoint = proxy.endpoint
        trusting = store.with_settings(endpoint=endpoint, ca_file=str(certificate))
        data = bytes(range(256)) * (small_parts // 128)
        trusting.put_bytes(f"{storage_root}/x", data)
        trusting.put_bytes(f"{storage_root}/once", b"1", if_absent=True)
        assert trusting.get_bytes(f"{storage_root}/x") == data
        assert trusting.get_file(f"{storage_root}/x", tmp_path / "x").read_bytes() == data
        trusting.close()
        with pytest.raises(StoreError, match=r"TLS certificate .* SSL_CERT_FILE"):
            store.with_settings(endpoint=endpoint).stat(f"{storage_root}/x")
        with pytest.raises(StoreError, match="SSL_CERT_FILE names /nowhere"):
            store.with_settings(endpoint=endpoint, ca_file="/nowhere").stat(f"{storage_root}/x")


def self_signed(folder: Path) -> Path:
    """A certificate for 127.0.0.1; its key lies beside it in key.pem."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "store")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = folder / "certificate.pem"
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


def test_connections_are_used_again(store: ObjectStore, storage_root: str, tmp_path: Path) -> None:
    client = store.with_settings(workers=2)
    for number in range(20):
        client.put_bytes(f"{storage_root}/{number}", b"x" * 1000)
        client.get_bytes(f"{storage_root}/{number}")
        client.get_file(f"{storage_root}/{number}", tmp_path / "x")
        client.stat(f"{storage_root}/{number}")
    pool = client.session.pool.connection_from_url(client.settings.endpoint)
    assert pool.num_requests >= 80
    assert pool.num_connections <= 2
    client.close()
