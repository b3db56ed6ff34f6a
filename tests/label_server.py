"""MONAI Label as a subprocess, and the HTTP requests of a viewer."""

from __future__ import annotations

import email
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nibabel as nib
import requests

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / ".venv-deploy"

START_SECONDS, ANSWER_SECONDS, TRAINING_SECONDS = 600, 300, 900
"""What each may take at most, on a core that many processes share."""

ENDING_SECONDS = 10
"""Seconds that a process may take to end."""

SETPRIV = shutil.which("setpriv") if os.geteuid() == 0 else None
"""What takes root's capabilities away, where root runs this and it is installed."""

WRITES_ANYWHERE = os.geteuid() == 0 and SETPRIV is None
"""Whether the server can write to a folder without write permission."""


class LabelServer:
    """A server with some bundles, on a free port of this machine's loopback, in a session of its own.

    As root it runs without root's capabilities, if it can (see ``WRITES_ANYWHERE``): a folder that is closed to writing
    is closed to it too.

    Args:
        folder: the app's folder, with the bundles in its ``model``; studies, log and everything else go there too.
        pacs: address of a DICOMweb server with the studies.
    """

    def __init__(self, folder: Path, pacs: str = "") -> None:
        self.folder, self.studies, self.log = folder, pacs or str(folder / "studies"), folder / "server.log"
        shutil.copyfile(ROOT / "bundle" / "label_app.py", folder / "main.py")
        for name in ("label_tasks.py", "label_dicom.py"):
            shutil.copy(ROOT / "bundle" / name, folder)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}"
        command = ["monailabel", "start_server", "--app", str(folder), "--studies", self.studies]
        command += ["--host", "127.0.0.1", "--port", str(port)]
        if SETPRIV:
            command = [SETPRIV, "--inh-caps=-all", "--bounding-set=-all", *command]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=self._environment(), stdout=log, stderr=log, start_new_session=True
            )

    def _environment(self) -> dict[str, str]:
        """The deploy environment without this repository, with a separate home folder and without network access."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "COV_", "COVERAGE"))}
        nowhere = "http://127.0.0.1:9"  # the discard port: whatever is asked of the outer world fails at once
        proxies = {f"{scheme}_proxy": nowhere for scheme in ("http", "https")} | {"no_proxy": "127.0.0.1"}
        path = f"{ENVIRONMENT / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return kept | proxies | {"PATH": path, "HOME": str(self.folder), "OMP_NUM_THREADS": "1"}

    def wait(self) -> dict[str, Any]:
        """Wait until it answers; return its description."""
        for _ in range(START_SECONDS):
            assert self.process.poll() is None, self.log.read_text()[-4000:]
            try:
                return requests.get(f"{self.address}/info/", timeout=ANSWER_SECONDS).json()
            except requests.ConnectionError:
                time.sleep(1)
        raise AssertionError(f"no answer in {START_SECONDS} s\n{self.log.read_text()[-4000:]}")

    def stop(self) -> None:
        """End every process of the session; there is none left afterwards."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if processes_of_session(self.process.pid):
                os.killpg(self.process.pid, number)
                wait_until(self._is_gone, ENDING_SECONDS)
        self.process.wait(ENDING_SECONDS)

    def _is_gone(self) -> bool:
        return self.process.poll() is not None and not processes_of_session(self.process.pid)

    def ask(self, method: str, path: str, **arguments: Any) -> requests.Response:
        return requests.request(method, f"{self.address}{path}", timeout=ANSWER_SECONDS, **arguments)

    def info(self) -> dict[str, Any]:
        return self._good(self.ask("GET", "/info/")).json()

    def upload(self, case: str, volume: Path) -> None:
        with volume.open("rb") as content:
            files = {"file": (volume.name, content)}
            self._good(self.ask("PUT", "/datastore/image", params={"image": case}, files=files))

    def remove(self, case: str) -> None:
        """A volume and what was submitted for it."""
        self._good(self.ask("DELETE", "/datastore/image", params={"id": case}))

    def submit_label(self, case: str, label: Path, names: dict[str, int]) -> None:
        told = {"label_info": [{"name": name, "idx": index} for name, index in names.items()]}
        with label.open("rb") as content:
            fields = {"params": json.dumps(told)}
            query = {"image": case, "tag": "final"}
            answer = self.ask(
                "PUT", "/datastore/label", params=query, data=fields, files={"label": (label.name, content)}
            )
        self._good(answer)

    def infer(self, model: str, case: str, **changed: Any) -> tuple[nib.Nifti1Image, dict[str, Any]]:
        """The label map and its description."""
        answer = self._good(self.ask_infer(model, case, **changed))
        message = email.message_from_bytes(
            b"Content-Type: " + answer.headers["Content-Type"].encode() + b"\r\n\r\n" + answer.content
        )
        parts = {part.get_param("name", header="Content-Disposition"): part for part in message.get_payload()}
        packed = parts["image"].get_payload(decode=True)
        said = json.loads(parts["params"].get_payload(decode=True))
        return nib.Nifti1Image.from_stream(io.BytesIO(_unzipped(packed))), said

    def ask_infer(self, model: str, case: str, output: str = "all", **changed: Any) -> requests.Response:
        """A viewer returns the model's options as it received them, but for those that its user changes."""
        options = self.info()["models"].get(model, {}).get("config", {}) | changed
        query = {"image": case, "output": output}
        return self.ask("POST", f"/infer/{model}", params=query, data={"params": json.dumps(options)})

    def start_training(self, model: str, **options: Any) -> None:
        """A viewer sends every option, the first of those that are lists."""
        told = self.info()["trainers"][model]["config"]
        chosen = {key: value[0] if isinstance(value, list) and value else value for key, value in told.items()}
        self._good(self.ask("POST", f"/train/{model}", json=chosen | options))

    def training(self) -> dict[str, Any]:
        return self._good(self.ask("GET", "/train/")).json()

    def batch(self) -> dict[str, Any]:
        """The inference over many volumes that was started last."""
        return self._good(self.ask("GET", "/batch/infer")).json()

    def finished_training(self) -> dict[str, Any]:
        """Wait for its end; how it ended, and its last lines. No process of it is left then."""
        assert wait_until(lambda: self.training()["status"] not in {"SUBMITTED", "RUNNING"}, TRAINING_SECONDS), (
            self.training()
        )
        wait_until(lambda: not self.training_processes(), ENDING_SECONDS)
        assert self.training_processes() == []
        return self.training()

    def training_processes(self) -> list[int]:
        """The processes in which a training runs."""
        return [
            pid for pid, words in processes_of_session(self.process.pid).items() if "monailabel.interfaces" in words
        ]

    def _good(self, answer: requests.Response) -> requests.Response:
        assert answer.ok, f"{answer.status_code} {answer.text}\n{self.log.read_text()[-4000:]}"
        return answer


def wait_until(condition: Any, seconds: float) -> bool:
    """Whether it came true in time."""
    end = time.monotonic() + seconds
    while not (true := condition()) and time.monotonic() < end:
        time.sleep(0.3)
    return bool(true)


def processes_of_session(leader: int) -> dict[int, str]:
    """The living processes of a session, with their command lines."""
    found = {}
    for folder in _process_folders():
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            if fields[0] != "Z" and int(fields[3]) == leader:
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
        except (FileNotFoundError, ProcessLookupError):  # it ended meanwhile
            continue
    return found


def _process_folders() -> Iterable[Path]:
    return (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())


def _unzipped(content: bytes) -> bytes:
    import gzip

    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
