"""A board on this machine: an sshd of its own on a loopback port, with its own keys, home and known hosts.

Needs the programs of OpenSSH, client and server (Debian: openssh-client, openssh-server); without them these tests
are skipped, and say so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import getpass
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from penjing.api import Request, compress
from penjing.here import architecture
from penjing.preprocess import Preprocess
from penjing.remote import Place
from PIL import Image

SSHD = shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")
LABELS = ("blue", "green", "red")
#: bytes of weights that do nothing but take time to copy
BALLAST = 10**7


class Proxy(threading.Thread):
    """A door to the sshd that can be shut after so many bytes have gone up."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self._target = port
        self._door = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._door.getsockname()[1]
        #: bytes that may yet go up before the connection breaks; None: all
        self.allowance: int | None = None
        #: the same, for the connections after it
        self.then: list[int] = []
        #: whether a broken connection may be made again
        self.mends = True
        self.breaks = 0
        self.up = 0

    def run(self) -> None:
        while True:
            try:
                inside, _ = self._door.accept()
            except OSError:
                return
            if self.breaks and not self.mends:
                inside.close()
                continue
            try:
                outside = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                inside.close()
                continue
            for pair in ((inside, outside, True), (outside, inside, False)):
                threading.Thread(target=self._pump, args=pair, daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, counted: bool) -> None:
        try:
            while data := source.recv(2**14):
                target.sendall(data)
                if counted:
                    self.up += len(data)
                    if self.allowance is not None:
                        self.allowance -= len(data)
                        if self.allowance < 0:
                            self.allowance = self.then.pop(0) if self.then else None
                            self.breaks += 1
                            break
        except OSError:
            pass
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def shut(self) -> None:
        self._door.close()


@dataclasses.dataclass
class Host:
    """The board: its home, and how ssh reaches it."""

    home: Path
    config: Path
    proxy: Proxy
    known_hosts: Path
    process: subprocess.Popen[bytes]

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.config}"

    def place(self, **changes: str) -> Place:
        return Place(**{"host": "board", "ssh": self.ssh, "python": sys.executable, **changes})


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Host]:
    missing = [name for name, path in (("sshd", SSHD), ("ssh", shutil.which("ssh"))) if not path]
    if missing:
        pytest.skip(f"there is no {' and no '.join(missing)} here: install openssh-server and openssh-client")
    room, home = tmp_path / "ssh", tmp_path / "home"
    room.mkdir(mode=0o700)
    home.mkdir()
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(room / name)], check=True)
    shutil.copy(room / "user.pub", room / "authorized_keys")
    port = _free_port()
    (room / "sshd_config").write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {room}/host\nAuthorizedKeysFile {room}/authorized_keys\n"
        f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\nKbdInteractiveAuthentication no\n"
        f"PermitRootLogin yes\nSetEnv HOME={home} OMP_NUM_THREADS=1\n"
    )
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it wants to separate privileges
    command = [str(SSHD), "-D", "-e", "-f", str(room / "sshd_config")]
    with (room / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
    proxy = Proxy(port)
    proxy.start()
    kind, key, *_ = (room / "host.pub").read_text().split()
    (room / "known_hosts").write_text(f"[127.0.0.1]:{proxy.port} {kind} {key}\n")
    (room / "config").write_text(
        f"Host board\n HostName 127.0.0.1\n Port {proxy.port}\n User {getpass.getuser()}\n IdentityFile {room}/user\n"
        f" IdentitiesOnly yes\n UserKnownHostsFile {room}/known_hosts\n GlobalKnownHostsFile /dev/null\n"
        " StrictHostKeyChecking yes\n"
    )
    try:
        _wait_for(port, process, room / "log")
        yield Host(home, room / "config", proxy, room / "known_hosts", process)
    finally:
        proxy.shut()
        process.terminate()
        process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(200):
        if process.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text()[-300:]}")
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError("sshd does not answer")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penjing.remote.copying.PAUSES", (0.0, 0.0, 0.0))


def network(path: Path) -> Path:
    """Write a network that names the brightest channel, with weights that make its file worth copying."""
    random = np.random.default_rng(0).standard_normal((1, BALLAST // 4)).astype(np.float32)
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["means"]),
        helper.make_node("Flatten", ["means"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight"], ["plain"]),
        # by so much of the ballast as is not there: nothing
        helper.make_node("ReduceMin", ["ballast"], ["least"], keepdims=0),
        helper.make_node("Mul", ["least", "nought"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["scores"]),
    ]
    weights = {
        "weight": np.eye(3, dtype=np.float32)[:, ::-1].copy(),
        "ballast": random,
        "nought": np.zeros((), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, [1, 3])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), path)
    return path


PROFILE = """name = "board"
title = "Test board"
backend = "onnxrt"
arch = "{arch}"
isa = []
precisions = ["fp32"]
channel_multiple = 8
max_opset = 20
memory_gb = 1
runtime = {{ onnxruntime = ">=1.21" }}
[facts]
identity = ["a board that is nowhere"]
[sources]
arch = "test"
isa = "test"
precisions = "test"
channel_multiple = "test"
max_opset = "test"
memory_gb = "test"
runtime = "test"
identity = "test"
[[recipe]]
use = "onnxrt"
"""


@pytest.fixture(scope="session")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return what carries out a small run for a board, and returns its folder."""
    base = tmp_path_factory.mktemp("made")
    random = np.random.default_rng(1)
    for index, label in enumerate(LABELS):
        (base / "photos" / label).mkdir(parents=True)
        for number in range(12):
            pixels = random.integers(0, 100, (12, 10, 3), np.uint8)
            pixels[..., 2 - index] += 120
            Image.fromarray(pixels).save(base / "photos" / label / f"{number} '$(touch x).png")
    source = network(base / "tiny.onnx")

    def make(arch: str = "") -> Path:
        folder = tmp_path_factory.mktemp("run") / "a run; of mine"
        profile = folder.parent / "board.toml"
        profile.write_text(PROFILE.format(arch=arch or architecture()))
        compress(
            Request(
                str(source),
                str(profile),
                data=base / "photos",
                preprocess=Preprocess(resize=(8, 8)),
                out=folder,
            )
        )
        return folder

    return make


@pytest.fixture(scope="session")
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "board" in getattr(item, "fixturenames", ()):
            item.add_marker("slow")
