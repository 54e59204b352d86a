"""A schema registry for tests: the calls that headrace makes, answered from a dictionary, in its own thread."""

from __future__ import annotations

import contextlib
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import orjson


@dataclass
class Answer:
    """What a path is answered with; ``hangs`` is set to let an answer that hangs go."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    hangs: threading.Event | None = None


@dataclass
class FakeRegistry:
    """``answers`` by path; ``requests`` holds path and headers of each that came."""

    url: str
    answers: dict[str, Answer]
    requests: list[tuple[str, dict[str, str]]]

    def add(self, schema_id: int, text: str, kind: str | None = None, references: Any = ()) -> None:
        self.answers[f"/schemas/ids/{schema_id}"] = Answer(document(text, kind, references))

    def add_version(
        self, subject: str, version: int, text: str, kind: str | None = None, references: Any = ()
    ) -> None:
        self.answers[f"/subjects/{subject}/versions/{version}"] = Answer(document(text, kind, references))


def document(text: str, kind: str | None, references: Any) -> bytes:
    """As a registry writes it: the type is left out for Avro."""
    found: dict[str, Any] = {"schema": text}
    if kind is not None:
        found["schemaType"] = kind
    if references:
        found["references"] = [
            {"name": name, "subject": subject, "version": at} for name, subject, at in references
        ]
    return orjson.dumps(found)


def error(code: int, status: int = 404) -> Answer:
    return Answer(orjson.dumps({"error_code": code, "message": "not found"}), status)


@contextlib.contextmanager
def registry_server(context: ssl.SSLContext | None = None) -> Iterator[FakeRegistry]:
    answers: dict[str, Answer] = {}
    requests: list[tuple[str, dict[str, str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            missing = error(40403 if self.path.startswith("/schemas/ids/") else 40401)
            answer = answers.get(self.path, missing)
            if answer.hangs is not None:
                answer.hangs.wait(30)
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    scheme = "http" if context is None else "https"
    try:
        yield FakeRegistry(f"{scheme}://127.0.0.1:{server.server_port}", answers, requests)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
