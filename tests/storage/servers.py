"""Real S3-compatible servers, each a process of its own on loopback, with a bucket and one key pair."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from hub.embedded import free_port
from hub.embedded.process import Child, port_is_free
from storage.s3 import S3Options

BUCKET = "auralink-files"
ACCESS_KEY, SECRET_KEY = "hub-of-the-tests", "secret-of-the-storage-tests"
START_S = 30.0


class S3Server:
    """`with SeaweedFS(directory) as server`: up, its bucket made, when that returns."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory
        self.port = free_port()
        self._child: Child | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def options(self, *, endpoint: str | None = None, **over: object) -> S3Options:
        fields: dict[str, object] = {
            "bucket": BUCKET,
            "endpoint": endpoint or self.endpoint,
            "access_key_id": ACCESS_KEY,
            "secret_access_key": SECRET_KEY,
            # A busy machine is no sign of a store that hangs.
            "timeout_s": 20.0,
        }
        return S3Options(**{**fields, **over})  # type: ignore[arg-type]

    def _command(self) -> list[str]:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._dir.mkdir(parents=True, exist_ok=True)
        self._child = Child(
            self._command(),
            log=self._dir / "server.log",
            stop_signal=signal.SIGKILL,
            env={"GOMEMLIMIT": "150MiB", "GOMAXPROCS": "2", "HOME": str(self._dir)},
            cwd=self._dir,
        )
        self._child.wait_until(self._has_bucket, what=type(self).__name__, timeout_s=START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._child is not None:
            self._child.kill()

    def _has_bucket(self) -> bool:
        """A bucket that takes an object: listing works long before that."""
        if port_is_free(self.port):
            return False
        client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, read_timeout=2),
        )
        give_up = time.monotonic() + START_S
        while True:
            with contextlib.suppress(BotoCoreError, ClientError):
                client.create_bucket(Bucket=BUCKET)
            try:
                client.put_object(Bucket=BUCKET, Key="ready", Body=b"")
                client.delete_object(Bucket=BUCKET, Key="ready")
                return True
            except (BotoCoreError, ClientError):
                if time.monotonic() > give_up:
                    return False
                time.sleep(0.1)


class SeaweedFS(S3Server):
    """`weed mini`, in one process. Listens on loopback only; its default is every interface."""

    def _command(self) -> list[str]:
        identities = {
            "identities": [
                {
                    "name": "hub",
                    "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
                    "actions": ["Admin", "Read", "Write", "List", "Tagging"],
                }
            ]
        }
        (self._dir / "s3.json").write_text(json.dumps(identities))
        ports = {
            "master.port": free_port(),
            "master.port.grpc": free_port(),
            "volume.port": free_port(),
            "volume.port.grpc": free_port(),
            "filer.port": free_port(),
            "filer.port.grpc": free_port(),
            "s3.port": self.port,
            "s3.port.grpc": free_port(),
            "admin.port": free_port(),
            "admin.port.grpc": free_port(),
        }
        return [
            binary("weed"),
            "mini",
            f"-dir={self._dir}",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-s3.config={self._dir / 's3.json'}",
            "-s3.domainName=localhost",
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-webdav=false",
            "-admin.ui=false",
            "-master.telemetry=false",
            *(f"-{name}={port}" for name, port in ports.items()),
        ]


class Rclone(S3Server):
    """`rclone serve s3` over a directory."""

    def _command(self) -> list[str]:
        (self._dir / "data" / BUCKET).mkdir(parents=True, exist_ok=True)
        return [
            binary("rclone"),
            "serve",
            "s3",
            "--config=/dev/null",
            f"--addr=127.0.0.1:{self.port}",
            f"--auth-key={ACCESS_KEY},{SECRET_KEY}",
            "--vfs-cache-mode=off",
            str(self._dir / "data"),
        ]


def binary(name: str) -> str:
    """Beside this interpreter, else on the path. Raises LookupError."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which(name)
    if found is None:
        raise LookupError(f"no {name}: install the `dev` extra")
    return found
