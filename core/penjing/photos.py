"""One photograph: found, identified by its bytes, decoded as a person sees it, or told why not."""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.errors import InputError
from penjing.files import sha256_of_open

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = frozenset(
    {".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
#: Pillow knows many more, and some of them start other programs
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
#: a quarter of a gigabyte as RGB, where Pillow too begins to suspect a decompression bomb
MAX_PIXELS = 2**30 // 4 // 3

_filters = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Photo:
    """A photograph: where it is, its class index (None: unlabelled) and the SHA-256 of its bytes in hex."""

    path: Path
    label: int | None
    digest: str


@dataclasses.dataclass
class Broken:
    """The photographs under `root` that cannot be read, each once, out of `total`."""

    root: Path = Path()
    total: int = 0
    #: share of the total above which the data is refused
    most: float = 1.0
    reasons: dict[Path, str] = dataclasses.field(default_factory=dict)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        """Yield path relative to the root, and reason, in order of path."""
        for path, reason in sorted(self.reasons.items()):
            inside = path.relative_to(self.root) if path.is_relative_to(self.root) else path
            yield inside.as_posix(), reason

    def __contains__(self, path: Path) -> bool:
        return path in self.reasons

    def __len__(self) -> int:
        return len(self.reasons)

    def add(self, path: Path, reason: str) -> None:
        """Note one; InputError once there are too many."""
        self.reasons[path] = reason
        if self.total:
            self.check()

    def check(self) -> None:
        """Raise InputError where too many are broken."""
        if len(self) > self.most * self.total:
            shown = [f"{path}: {reason}" for path, reason in list(self)[:5]]
            raise InputError(
                f"{len(self)} of {self.total} photographs in {self.root} cannot be read, "
                f"more than {self.most:.0%}:\n  " + "\n  ".join(shown),
                hint="Replace or remove them; or, if so many are known to be bad, allow a larger share.",
            )


def read_photo(path: Path) -> Image.Image:
    """Return the photograph as RGB, upright; InputError with the reason where it cannot be read."""
    with pillow_warnings():
        try:
            return decode(path)
        except InputError as error:
            raise InputError(
                f"{path}: {error.message}", hint="Is it a photograph that other programs open?"
            ) from error


def decode(path: Path) -> Image.Image:
    """Return the photograph as RGB, upright; an animation's first frame; without alpha, as in ImageFolder.

    Raises InputError whose message is the reason alone. Safe in threads, inside one `pillow_warnings()`.
    """
    from PIL import ImageOps

    with _regular(path) as file:
        # Pillow's decoders raise whatever a damaged file makes them trip over; it is named and passed on
        try:
            image = _header(file)
            image.load()
            return _rgb(ImageOps.exif_transpose(image), image.format)
        except InputError:
            raise
        except Exception as error:
            raise InputError(_reason(error)) from error


def identify(path: Path) -> str:
    """Return the SHA-256 of the file's bytes; InputError with the reason where its header is no image's."""
    with _regular(path) as file:
        try:
            digest = sha256_of_open(file)
            file.seek(0)
            _header(file)
        except InputError:
            raise
        except Exception as error:
            raise InputError(_reason(error)) from error
        return digest


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Make Pillow's warning of a bomb an error and hush its others, which are remarks on metadata.

    Warning filters belong to the process, hence the lock. Threads started inside see them.
    """
    from PIL import Image

    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


@contextmanager
def _regular(path: Path) -> Iterator[BufferedReader]:
    """Open a file whose size is not zero; a pipe or a device could block for ever."""
    try:
        if not path.exists():
            raise InputError("a link to nowhere" if path.is_symlink() else "no such file")
        if not path.is_file():
            raise InputError("not a regular file")
        if not path.stat().st_size:
            raise InputError("an empty file")
        file = path.open("rb")
    except OSError as error:
        raise InputError(_reason(error)) from error
    with file:
        yield file


def _header(file: BufferedReader) -> Image.Image:
    from PIL import Image

    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise InputError(f"{image.width}×{image.height} pixels, more than {MAX_PIXELS // 10**6} million")
    return image


def _rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I") and (image.mode != "I" or file_format in ("PNG", "PPM")):
        # 16 bits; older Pillow reads such a PNG as mode I. Converting would clip all above 255 to white
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise InputError(f"pixels of 32 bits (mode {image.mode}), whose white is unknown")
    elif image.mode == "P":
        image = image.convert("RGBA")  # Pillow's way around palettes that hold their own transparency
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    """Return why a file cannot be read, without its path or an object's address."""
    from PIL import Image, UnidentifiedImageError

    if isinstance(error, UnidentifiedImageError):
        return "not an image that can be read"
    if isinstance(error, Image.DecompressionBombWarning | Image.DecompressionBombError):
        return f"more than {MAX_PIXELS // 10**6} million pixels"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
