"""The ways to Redis and PostgreSQL under TLS: taken with the right certificate, refused with a wrong one."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from db.errors import DatabaseUnavailable
from db.pool import Database
from hub.cluster import Cluster
from hub.embedded import Valkey
from hub.protocol.errors import ClusterUnavailable
from tests.cluster.hearing import SECRET, until
from tests.conftest import TestDatabase

# What a client of PostgreSQL says before TLS begins: length 8, code 80877103.
_SSL_REQUEST = b"\x00\x00\x00\x08\x04\xd2\x16\x2f"


def _certificate(directory: Path) -> Path:
    """Self-signed, for 127.0.0.1; the file holds its key as well."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")]), datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    directory.mkdir()
    file = directory / "both.pem"
    file.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return file


@asynccontextmanager
async def under_tls(certificate: Path, port: int, *, postgres: bool = False) -> AsyncIterator[int]:
    """A port that takes TLS and speaks plainly to the server behind it: ours are built without TLS of their own."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    tasks: set[asyncio.Task[None]] = set()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if postgres:
            assert await reader.readexactly(8) == _SSL_REQUEST
            writer.write(b"S")
            with contextlib.suppress(OSError, ssl.SSLError):
                await writer.start_tls(context)
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", port)
        for way in ((reader, inner_writer), (inner_reader, writer)):
            tasks.add(asyncio.create_task(pump(*way)))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=None if postgres else context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_redis_is_spoken_to_under_tls_and_only_with_its_own_certificate(
    valkey: Valkey, tmp_path: Path, env_name: str
) -> None:
    """S-183: `rediss://`."""
    good, other = _certificate(tmp_path / "good"), _certificate(tmp_path / "other")
    async with under_tls(good, valkey.port) as port:
        plain = urlsplit(valkey.url)
        url = f"rediss://:{plain.password}@127.0.0.1:{port}/0?ssl_ca_certs="
        async with Cluster.open(url + str(good), env=env_name, secret=SECRET, node_id="a") as cluster:
            await cluster.ping()
            await until(lambda: not cluster.degraded)
        async with Cluster.open(url + str(other), env=env_name, secret=SECRET, node_id="b") as cluster:
            assert cluster.degraded
            with pytest.raises(ClusterUnavailable):
                await cluster.ping()


async def test_postgresql_is_spoken_to_under_tls_and_only_with_its_own_certificate(
    database: TestDatabase, tmp_path: Path
) -> None:
    """S-183: `sslmode=verify-full`."""
    good, other = _certificate(tmp_path / "good"), _certificate(tmp_path / "other")
    parts = urlsplit(database.app_dsn)
    assert parts.port is not None
    async with under_tls(good, parts.port, postgres=True) as port:
        netloc = parts.netloc.replace(f":{parts.port}", f":{port}")
        dsn = (
            parts._replace(netloc=netloc).geturl() + ("&" if parts.query else "?") + "sslmode=verify-full&sslrootcert="
        )
        db = await Database.open(dsn + str(good))
        try:
            await db.ping()
        finally:
            await db.close()
        with pytest.raises(DatabaseUnavailable):
            await Database.open(dsn + str(other))
