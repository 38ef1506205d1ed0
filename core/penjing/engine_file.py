"""What the header of an engine file tells: who made it. Nothing of it is loaded.

Bytes 0 to 3 are the tag: "ftrt" of TensorRT, "vtrt" of TensorRT-RTX. Then comes the version of the format
(little-endian, 0). Bytes 24 to 27 are major, minor, patch and build of the maker, in engines from TensorRT 8.6
on. Sources: NVIDIA/TensorRT, samples/common/sampleEngines.cpp at v10.7.0; measured with TensorRT-RTX 1.7.1.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from penjing.errors import InputError

Maker = Literal["TensorRT", "TensorRT-RTX"]
_TAGS: dict[bytes, Maker] = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
#: bytes of the header that are read
_HEADER = 28
#: first bytes of files that people take for engines
_OTHERS = (
    (b"\x08", "an ONNX file, by its first bytes: build an engine from it with trtexec --onnx"),
    (b"PK\x03\x04", "a ZIP file, such as PyTorch's .pt: export it to ONNX first"),
    (b"\x1f\x8b", "a gzip file: unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself: git lfs pull"),
    (b"{", "a JSON file"),
)


@dataclasses.dataclass(frozen=True)
class Header:
    """Who made an engine."""

    maker: Maker
    #: "10.3.0"; "" where the header does not tell, as before TensorRT 8.6
    version: str
    #: "10.3.0.30", the number of the build being cut to eight bits
    full: str
    size: int


def read_header(path: Path) -> Header:
    """Return what the header of an engine file says; InputError for a file that is none, or is cut off."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(_HEADER)
    except OSError as error:
        raise InputError(f"The engine {path} cannot be read: {error.strerror or error}.") from error
    maker = _TAGS.get(start[:4])
    if maker is None:
        raise InputError(
            f"{path} is no engine of TensorRT: {_what(start)}.",
            hint="An engine begins with the letters ftrt.",
        )
    if len(start) < _HEADER:
        raise InputError(
            f"{path} is cut off: an engine has more than {size} bytes.",
            hint="Copy it again, or build it anew from model.onnx.",
        )
    form = int.from_bytes(start[4:8], "little")
    major, minor, patch, build = start[24:28]
    known = form == 0 and _plausible(maker, major, minor)
    return Header(
        maker,
        f"{major}.{minor}.{patch}" if known else "",
        f"{major}.{minor}.{patch}.{build}" if known else "",
        size,
    )


def _plausible(maker: Maker, major: int, minor: int) -> bool:
    """Tell whether a version may be one, rather than what older formats have in its place."""
    return 8 <= major <= 30 and minor < 100 if maker == "TensorRT" else 1 <= major <= 30 and minor < 100


def _what(start: bytes) -> str:
    if not start:
        return "it is empty"
    for first, what in _OTHERS:
        if start.startswith(first):
            return f"it looks like {what}"
    return f"it begins with {start[:4]!r}"
