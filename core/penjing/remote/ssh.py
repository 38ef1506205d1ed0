"""A board reached with the user's own OpenSSH: their keys, configuration and known hosts decide."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from penjing.errors import InputError, PlanError, StepError

if TYPE_CHECKING:
    from typing_extensions import Self

#: what ssh answers when it is ssh that failed
FAILED = 255
#: a host, as ssh takes one: no option, no blank, nothing a shell would take up
_HOST = re.compile(r"(ssh://)?([A-Za-z0-9_][\w.+-]*@)?[A-Za-z0-9_\[:][\w.:%\[\]-]*", re.ASCII)
_PYTHON = re.compile(r"[\w./+~][\w./+~-]*", re.ASCII)
#: seconds to wait for a connection, and between signs of life
_PATIENCE = ("ConnectTimeout=15", "ServerAliveInterval=10", "ServerAliveCountMax=3")
#: in single quotes whole for sh, fish and csh: neither backslash nor quote nor exclamation mark is in it
_START = (
    'p=$3; test -n "$p" || {{ p=python3; test -x {venv} && p={venv}; }}; exec "$p" -c "$1" "$2" "$4"'.format(
        venv='"$HOME/penjing/bin/python"'
    )
)
_UNPACK = (
    "import base64,sys,zlib;v=sys.version_info[:2];"
    "v<(3,6) and sys.exit(sys.executable+{sorry}%v);exec(zlib.decompress(base64.b64decode(sys.argv[1])))"
).format(sorry='" is Python %d.%d, and 3.6 or later is needed"')


class LostError(StepError):
    """The connection broke off; asked again, the work goes on where it was."""


def check_host(host: str) -> str:
    """Return the host; InputError where ssh or a shell could take it for something else."""
    if not _HOST.fullmatch(host):
        raise InputError(
            f"{host!r} is no host.", hint="Give NAME, USER@NAME, or a name from your ssh configuration."
        )
    return host


def check_path(path: str) -> str:
    """Return the path of a folder on the board; InputError for one that is none, or that nobody would give away."""
    tidy = path.rstrip("/")
    if (
        not tidy.isprintable()
        or tidy in ("", ".", "..", "~")
        or tidy.startswith("-")
        or ".." in tidy.split("/")
    ):
        raise InputError(
            f"{path!r} cannot be the folder of a bundle on the board.",
            hint="Give one of its own, absolute or relative to the home there.",
        )
    return tidy


class Board:
    """A connection, shared by all that is asked over it. Use it in a `with`."""

    def __init__(self, host: str, *, ssh: str = "ssh", python: str = "") -> None:
        self.host, self.python = check_host(host), python
        if python and not _PYTHON.fullmatch(python):
            raise InputError(f"{python!r} is no path of a Python.", hint="Give the path on the board.")
        self._ssh = shlex.split(ssh) or ["ssh"]
        if shutil.which(self._ssh[0]) is None:
            raise PlanError(f"There is no {self._ssh[0]!r} here.", hint="Install OpenSSH's client.")
        self._answered = False
        self._sockets = ""

    def __enter__(self) -> Self:
        if os.name == "posix":  # one connection for all, so that a password is asked for once
            # the path of a socket may have about a hundred letters, and macOS's own folder nearly has
            self._sockets = tempfile.mkdtemp(prefix="penjing-", dir="/tmp")  # mkdtemp makes it private
        return self

    def __exit__(self, *error: object) -> None:
        if self._sockets:
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                words = [*self._base(), "-O", "exit", "--", self.host]
                subprocess.run(words, capture_output=True, timeout=10, check=False)
            shutil.rmtree(self._sockets, ignore_errors=True)

    def ask(self, ask: str, content: bytes | Iterable[bytes] = b"", **request: Any) -> dict[str, Any]:
        """Ask the board for something, giving it `content`; return its answer.

        Raises LostError where the connection breaks, StepError with the board's words where it refuses.
        """
        output: list[str] = []
        code, said = self._start({"ask": ask, **request}, content, output.append)
        try:
            answer: dict[str, Any] = json.loads(output[-1])
        except (ValueError, IndexError):
            raise self._failure(code, said) from None
        if "error" in answer:
            raise StepError(f"{self.host}: {answer['error']}.", hint=_advice(answer["error"]))
        return answer

    def run(self, path: str, words: list[str], line: Callable[[str], object]) -> tuple[int, str]:
        """Run the bundle's runner, giving each line it prints to `line`; return its exit code and complaints."""
        code, said = self._start({"ask": "run", "path": path, "words": words}, b"", line)
        if code in (FAILED, 126, 127):
            raise self._failure(code, said)
        return code, said

    def _base(self) -> list[str]:
        words = [*self._ssh, "-T"]
        for option in (*_PATIENCE, *(() if sys.stdin.isatty() else ("BatchMode=yes",))):
            words += ["-o", option]
        if self._sockets:
            words += [
                "-o",
                "ControlMaster=auto",
                "-o",
                "ControlPersist=60",
                "-o",
                f"ControlPath={self._sockets}/c",
            ]
        return words

    def _command(self, request: Mapping[str, Any]) -> list[str]:
        source = (Path(__file__).parent / "board.py").read_bytes()
        words = [base64.b64encode(zlib.compress(source)), base64.b64encode(json.dumps(request).encode())]
        program, asked = (word.decode("ascii") for word in words)
        # every word is of letters, digits and +/= but for those in single quotes, so that no shell changes any
        remote = f"exec sh -c '{_START}' penjing '{_UNPACK}' {program} '{self.python}' {asked}"
        return [*self._base(), "--", self.host, remote]

    def _start(
        self, request: Mapping[str, Any], content: bytes | Iterable[bytes], line: Callable[[str], object]
    ) -> tuple[int, str]:
        """Run board.py there; return the exit code and what came on standard error."""
        parts = [content] if isinstance(content, bytes) else content
        with subprocess.Popen(
            self._command(request), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stderr is not None
            said: list[bytes] = []
            reader = threading.Thread(target=lambda: said.extend(_all(process.stderr)), daemon=True)
            reader.start()
            try:
                with contextlib.suppress(BrokenPipeError):  # then the exit code and standard error tell why
                    for part in parts:
                        process.stdin.write(part)
                    process.stdin.close()
                for raw in process.stdout:
                    line(raw.decode("utf-8", "replace").rstrip("\r\n"))
                code = process.wait()
            except BaseException:
                process.kill()
                raise
            finally:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
            reader.join(5)
        self._answered = self._answered or code != FAILED
        return code, b"".join(said).decode("utf-8", "replace").strip()

    def _failure(self, code: int, said: str) -> StepError:
        """Return the error for a command that never came to answer."""
        last = (said or "it says nothing").splitlines()[-1].strip()
        last = "".join(letter if letter.isprintable() else "?" for letter in last)[:300]
        if code == FAILED:
            why, hint = next(((why, hint) for sign, why, hint in _SIGNS if sign in said), ("", ""))
            if self._answered:
                return LostError(f"The connection to {self.host} was lost: {last}", hint=_AGAIN)
            return StepError(
                f"{self.host} cannot be reached: {why or last}", hint=hint or _BY_HAND.format(self.host)
            )
        if code in (126, 127):
            lacks = "has no" if code == 127 else "cannot start"
            return StepError(
                f"{self.host} {lacks} {self.python or 'python3'}: {last}",
                hint="Install it there, or name one with --python.",
            )
        if "3.6 or later is needed" in last:
            return StepError(f"{self.host}: {last}.", hint="Name a newer one with --python.")
        if self._answered and code < 0:
            return LostError(f"The connection to {self.host} was lost: ssh was stopped.", hint=_AGAIN)
        return StepError(
            f"{self.host} answers with exit code {code}: {last}", hint=_BY_HAND.format(self.host)
        )


_AGAIN = "Run the same command again: what arrived is not sent twice."
_BY_HAND = "Try `ssh {} true` by hand, and again when that works."
_SIGNS = (
    ("Host key verification failed", "its host key is not known, or not the one known.",
     "Connect once by hand with ssh, and compare the key with the board's; Penjing never switches this check off."),
    ("REMOTE HOST IDENTIFICATION HAS CHANGED", "its host key is not the one known.",
     "If you set the board up anew, remove the old key with `ssh-keygen -R`; else somebody may be in between."),
    ("Permission denied", "it does not let you in.",
     "Copy your key to it with ssh-copy-id; where no terminal is, no password can be asked for."),
    ("Could not resolve hostname", "its name is not known.", "Check the name, and ~/.ssh/config."),
    ("Connection refused", "nothing listens there.", "Is sshd running on the board, and on that port?"),
    ("timed out", "it does not answer.", "Is the board on, and in this network?"),
    ("No route to host", "there is no way to it.", "Is the board on, and in this network?"),
)  # fmt: skip


def _advice(error: str) -> str:
    if "No space left" in error or "quota" in error:
        return "Make room on the board, or name another folder with --path. What arrived is not sent twice."
    if any(sign in error for sign in ("Permission denied", "Read-only", "Not a directory")):
        return "Name a folder with --path that you may write to there."
    return "Nothing on the board is taken for a bundle until all of it has arrived."


def _all(stream: IO[bytes] | None) -> Iterator[bytes]:
    while stream is not None and (part := stream.read(2**14)):
        yield part
