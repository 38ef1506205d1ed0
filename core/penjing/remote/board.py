# This runs on boards with Python 3.6, whose types, paths and calls it therefore keeps to:
# ruff: noqa: UP006, UP035, PTH103, PTH104, PTH106, PTH111, PTH112, PTH113, PTH118, PTH119, PTH120, PTH123, PTH208
"""What Penjing does on the board: sent along with each request, and gone after it.

A request is a JSON object in base64, the last argument; files come in on standard input; the answer is a JSON object.
"""

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import time
from typing import Any, Dict, List

CHUNK = 2**16
#: tenths of a second to wait for another who does the same
PATIENCE = 100
MARKS = ("manifest.json", "runner.py")


class RefusedError(Exception):
    """Why a request cannot be carried out, in one line."""


def place(request: Dict[str, Any], key: str = "path") -> str:
    """Return a path of a request; one that is not absolute begins at home."""
    return os.path.normpath(os.path.join(os.path.expanduser("~"), os.path.expanduser(request[key])))


def probe(request: Dict[str, Any]) -> Dict[str, Any]:
    """Tell what the board is, and what lies where the bundle is to lie."""
    path = place(request)
    there = path
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    usage = os.statvfs(there)
    return {
        "path": path,
        "python": platform.python_version(),
        "arch": platform.machine(),
        "free": usage.f_bavail * usage.f_frsize,
        "writable": os.access(there, os.W_OK | os.X_OK),
        "there": digest_at(path),
    }


def digest_at(path: str) -> str:
    """Return the digest of the bundle at a path; "" where nothing is, "other" where something else is."""
    if not os.path.lexists(path) or (os.path.isdir(path) and not os.listdir(path)):
        return ""
    try:
        with open(os.path.join(path, "manifest.json"), "rb") as file:
            digest = json.loads(file.read(4 * 10**6).decode("utf-8"))["digest"]
    except (OSError, ValueError, KeyError, TypeError):
        return "other"
    return str(digest) if all(os.path.isfile(os.path.join(path, name)) for name in MARKS) else "other"


def have(request: Dict[str, Any]) -> Dict[str, Any]:
    """Tell how much of each file is there already, and the SHA-256 of that much."""
    path, names = place(request), json.loads(sys.stdin.read())
    found = {}
    for name in names:
        facts = facts_of(path, name)
        if facts:
            found[name] = facts
    return {"files": found}


def size_and_hash(file: Any) -> List[Any]:
    hasher, size = hashlib.sha256(), 0
    for chunk in iter(lambda: file.read(CHUNK), b""):
        hasher.update(chunk)
        size += len(chunk)
    return [size, hasher.hexdigest()]


def receive(request: Dict[str, Any]) -> Dict[str, Any]:
    """Write what comes in: a line of JSON with name, offset and size of each part, then the parts."""
    path, stream = place(request), sys.stdin.buffer
    os.makedirs(path, mode=0o755, exist_ok=True)
    for name, offset, size in json.loads(stream.readline().decode("utf-8")):
        target = os.path.join(path, name)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # cut only at its end: whoever brings the same at the same time writes the same bytes
        with os.fdopen(os.open(target, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            file.seek(offset)
            while size:
                chunk = stream.read(min(CHUNK, size))
                if not chunk:
                    raise RefusedError("the connection ended before the files did")
                file.write(chunk)
                size -= len(chunk)
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
    return {}


def finish(request: Dict[str, Any]) -> Dict[str, Any]:
    """Compare every file with its size and hash, then put the folder in its place: only now is it a bundle."""
    part, path, wanted = place(request, "part"), place(request), json.loads(sys.stdin.read())
    for _ in range(PATIENCE):
        if whole(path, request["digest"], wanted):
            break  # done already: before the connection broke, or by another who brought the same
        if os.path.isdir(part):
            settle(part, path, request["digest"], wanted)
            break
        time.sleep(0.1)
    else:
        raise RefusedError(part + " is gone: somebody else brings the same or cleans up")
    shutil.rmtree(part, ignore_errors=True)
    remove_like(part, r"\.\d+(\.old)?")
    return {}


def settle(part: str, path: str, digest: str, wanted: Dict[str, Any]) -> None:
    """Take a folder away from whoever still writes into it by name, compare its files, and put it in its place."""
    taken = f"{part}.{os.getpid()}"
    os.rename(part, taken)
    try:
        compare(taken, wanted)
        refuse_other(path)
        replace(taken, path)
    except (OSError, RefusedError):
        if whole(path, digest, wanted):
            return  # another was faster
        if os.path.isdir(taken) and not os.path.lexists(part):
            os.rename(taken, part)  # what is right in it need not be sent again
        raise


def compare(folder: str, wanted: Dict[str, Any]) -> None:
    for name, expected in wanted.items():
        if facts_of(folder, name) != expected:
            raise RefusedError(name + " did not arrive as it was sent")


def refuse_other(path: str) -> None:
    if digest_at(path) == "other":
        raise RefusedError(path + " holds something that is no bundle")


def replace(new: str, path: str) -> None:
    """Put a folder in the place of another, which others may do at the same time."""
    old = new + ".old"
    os.makedirs(os.path.dirname(path), exist_ok=True)
    for attempt in range(PATIENCE):
        shutil.rmtree(old, ignore_errors=True)
        try:
            if os.path.lexists(path):
                os.rename(path, old)
            os.rename(new, path)
            break
        except OSError:
            if attempt + 1 == PATIENCE or not os.path.isdir(new):
                raise
            time.sleep(0.1)
    shutil.rmtree(old, ignore_errors=True)


def whole(path: str, digest: str, wanted: Dict[str, Any]) -> bool:
    """Tell whether the bundle of this digest lies there, each of its files as it was sent."""
    there = digest_at(path) == digest
    return there and all(facts_of(path, name) == expected for name, expected in wanted.items())


def facts_of(folder: str, name: str) -> List[Any]:
    """Return the size and hash of a file; nothing where there is none."""
    try:
        with open(os.path.join(folder, name), "rb") as file:
            return size_and_hash(file)
    except OSError:
        return []


def remove_like(path: str, ending: str) -> None:
    """Remove folders whose name is that of a path, which need not be there, and an ending."""
    above, name = os.path.split(path)
    for other in os.listdir(above) if os.path.isdir(above) else []:
        if re.match(re.escape(name) + ending + r"\Z", other):
            shutil.rmtree(os.path.join(above, other), ignore_errors=True)


def run(request: Dict[str, Any]) -> Dict[str, Any]:
    """Become the bundle's runner: what it says and how it ends reach the workstation unchanged."""
    path = place(request)
    os.chdir(path)
    os.execv(sys.executable, [sys.executable, os.path.join(path, "runner.py")] + request["words"])


def clean(request: Dict[str, Any]) -> Dict[str, Any]:
    """Remove the folders given, none but bundles and what was on its way to be one, and empty folders above them."""
    for key in ("path", "original", "photos"):
        path = place(request, key)
        if key != "photos" and digest_at(path) == "other":
            raise RefusedError(path + " holds something that is no bundle, and stays")
        if os.path.isdir(path):
            shutil.rmtree(path)
    # of this bundle, and of those that the run had before
    for key in ("part", "original_part"):
        remove_like(place(request, key)[:-12], r"[0-9a-f]{12}(\.\d+)?(\.old)?")
    above = os.path.dirname(place(request))
    if os.path.basename(above) == request["above"] and os.path.isdir(above) and not os.listdir(above):
        os.rmdir(above)
    return {}


def clean_photos(request: Dict[str, Any]) -> Dict[str, Any]:
    """Remove the photographs."""
    shutil.rmtree(place(request, "photos"), ignore_errors=True)
    return {}


def main() -> int:
    request = json.loads(base64.b64decode(sys.argv[-1]).decode("utf-8"))
    known = {
        "probe": probe, "have": have, "receive": receive, "finish": finish, "run": run, "clean": clean,
        "clean_photos": clean_photos,
    }  # fmt: skip
    try:
        answer = known[request["ask"]](request)
    except RefusedError as refusal:
        answer = {"error": str(refusal)}
    except OSError as error:
        answer = {"error": (error.filename or place(request)) + ": " + (error.strerror or str(error))}
    sys.stdout.write(json.dumps(answer) + "\n")
    return 1 if "error" in answer else 0


if __name__ == "__main__":
    sys.exit(main())
