"""A PACS of one process: the part of DICOMweb that MONAI Label asks for, over a folder of series."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import pydicom

BOUNDARY = "between-instances"


class Pacs:
    """The instances of a PACS, and what was stored since.

    Args:
        folder: of DICOM files, at any depth.
    """

    def __init__(self, folder: Path) -> None:
        self.instances = [pydicom.dcmread(file) for file in sorted(folder.rglob("*")) if file.is_file()]
        self.stored: list[pydicom.Dataset] = []
        self.address = ""

    def series(self, **wanted: str) -> list[list[pydicom.Dataset]]:
        """The series with these elements, each a list of instances."""
        found: dict[str, list[pydicom.Dataset]] = {}
        for instance in [*self.instances, *self.stored]:
            if all(str(instance.get(name, "")) == value for name, value in wanted.items()):
                found.setdefault(str(instance.SeriesInstanceUID), []).append(instance)
        return list(found.values())

    @contextmanager
    def served(self) -> Iterator[Pacs]:
        """Answer on a free port of the loopback."""
        handler = type("Handler", (_Handler,), {"pacs": self})
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.address = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield self
        finally:
            server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    pacs: Pacs

    def do_GET(self) -> None:
        address = urlparse(self.path)
        parts = address.path.strip("/").split("/")
        if parts == ["series"]:
            wanted = {key: value[0] for key, value in parse_qs(address.query).items() if key[:1].isupper()}
            self._answer_json([_described(series[0]) for series in self.pacs.series(**wanted)])
            return
        (series,) = self.pacs.series(SeriesInstanceUID=parts[3])
        if parts[-1] == "metadata":
            self._answer_json([_described(instance) for instance in series])
            return
        pieces = [
            b"--%s\r\nContent-Type: application/dicom\r\n\r\n%s\r\n" % (BOUNDARY.encode(), _bytes(one))
            for one in series
        ]
        kind = f'multipart/related; type="application/dicom"; boundary={BOUNDARY}'
        self._answer(kind, b"".join(pieces) + f"--{BOUNDARY}--".encode())

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        stored = pydicom.dcmread(io.BytesIO(content[content.index(b"\r\n\r\n") + 4 :]))
        self.pacs.stored.append(stored)
        result = pydicom.Dataset()
        result.RetrieveURL = f"{self.pacs.address}/studies/{stored.StudyInstanceUID}/series/{stored.SeriesInstanceUID}"
        self._answer("application/dicom+json", json.dumps(result.to_json_dict()).encode())

    def _answer_json(self, content: Any) -> None:
        self._answer("application/dicom+json", json.dumps(content).encode())

    def _answer(self, kind: str, content: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: tests read the log of MONAI Label."""


def _described(instance: pydicom.Dataset) -> Any:
    plain = pydicom.Dataset({element.tag: element for element in instance if element.tag != 0x7FE00010})
    return plain.to_json_dict()


def _bytes(instance: pydicom.Dataset) -> bytes:
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, instance)
    return buffer.getvalue()
