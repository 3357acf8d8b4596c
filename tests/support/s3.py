"""An S3 server in this process (moto's) that counts its requests and may answer slowly."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

KEY, SECRET = "testing", "secret"


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    num_bytes: int
    """Of the answer."""


@dataclass
class S3Server:
    """Buckets at an address; `requests` are those since `record` began."""

    port: int = 0
    latency_s: float = 0.0
    refused: str = ""
    """Method of requests that are answered with an error of the server."""
    requests: list[Request] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Any:
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=KEY,
            aws_secret_access_key=SECRET,
        )

    def address(self, path: str) -> str:
        """The address of bucket/path, with all that is needed to reach it."""
        return f"s3://{KEY}:{SECRET}@{path}?scheme=http&endpoint_override=127.0.0.1:{self.port}"

    def upload(self, folder: Path, prefix: str, bucket: str = "bucket") -> None:
        """Copy a local folder into a bucket."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                key = f"{prefix}/{path.relative_to(folder).as_posix()}"
                self.client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    def names(self, prefix: str = "", bucket: str = "bucket") -> list[str]:
        """The keys of the objects of a bucket."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [item["Key"] for page in pages for item in page.get("Contents", [])]

    @contextlib.contextmanager
    def record(self, latency_s: float = 0.0) -> Iterator[list[Request]]:
        """Note requests, and let each take so long at least."""
        self.requests, self.latency_s, self.most_at_once = [], latency_s, 0
        try:
            yield self.requests
        finally:
            self.latency_s = 0.0

    def app(self, inner: Any) -> Any:
        def handle(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
            with self._lock:
                self._now += 1
                self.most_at_once = max(self.most_at_once, self._now)
            try:
                time.sleep(self.latency_s)
                if environ["REQUEST_METHOD"] == self.refused:
                    start_response("500 Internal Server Error", [("Content-Length", "0")])
                    return [b""]
                body = b"".join(inner(environ, start_response))
            finally:
                with self._lock:
                    self._now -= 1
            self.requests.append(Request(environ["REQUEST_METHOD"], environ["PATH_INFO"], len(body)))
            return [body]

        return handle


@contextlib.contextmanager
def s3_server(bucket: str = "bucket") -> Iterator[S3Server]:
    """A server with one bucket."""
    state = S3Server()
    app = state.app(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    state.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        state.client.create_bucket(Bucket=bucket)
        yield state
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
