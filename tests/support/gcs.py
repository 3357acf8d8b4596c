"""A server of Google Cloud Storage's JSON API on this machine (gcp-storage-emulator's)."""

from __future__ import annotations

import contextlib
import functools
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import ThreadingHTTPServer

import pyarrow.fs as pafs
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "bucket"


@dataclass(frozen=True)
class GcsServer:
    """One bucket at an address."""

    port: int

    def address(self, path: str) -> str:
        """The address of bucket/path, with all that is needed to reach it."""
        return f"gs://anonymous@{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}"

    @property
    def fs(self) -> pafs.GcsFileSystem:
        """A client of it that is not mgray's."""
        return pafs.GcsFileSystem(anonymous=True, scheme="http", endpoint_override=f"127.0.0.1:{self.port}")

    def names(self, prefix: str) -> set[str]:
        """Paths of the objects below bucket/prefix."""
        found = self.fs.get_file_info(pafs.FileSelector(f"{BUCKET}/{prefix}", recursive=True, allow_not_found=True))
        return {info.path.removeprefix(f"{BUCKET}/") for info in found if info.type == pafs.FileType.File}


@contextlib.contextmanager
def gcs_server() -> Iterator[GcsServer]:
    """A server with one bucket, in memory.

    A process of its own: pyarrow holds Python's lock while it asks Google's client whether a file is closed, which begins a download.
    """
    command = [sys.executable, "-m", "tests.support.gcs"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        yield GcsServer(int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()


def _serve() -> None:
    """Serve until killed; the emulator's own server takes one connection at a time, and clients keep several."""
    storage = Storage(use_memory_fs=True)
    create_bucket(BUCKET, storage)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(RequestHandler, storage))
    print(server.server_port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    _serve()
