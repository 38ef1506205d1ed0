"""The photographs of a run, in disjoint splits that depend on their bytes and on nothing else."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from penjing.classes import index_classes, read_listing
from penjing.errors import InputError
from penjing.layout import Layout, read_layout
from penjing.photos import Broken, Photo, decode, identify, pillow_warnings, read_photo
from penjing.preprocess import Preprocess
from penjing.step import Progress, Silent

if TYPE_CHECKING:
    from concurrent.futures import Executor

    import numpy as np
    import numpy.typing as npt

__all__ = ["Batch", "Broken", "Data", "Photo", "Split", "open_data", "read_photo"]

TEST_SHARE = 0.3
SELECT_SHARE, SELECT_MOST = 0.1, 500
#: so few photographs teach a network nothing: all of them calibrate
FEW = 32
WORKERS = min(4, os.cpu_count() or 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Batch:
    """Photographs as they go into a model: float32 NCHW, class indices int64 [N] (None where unlabelled)."""

    inputs: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64] | None
    photos: tuple[Photo, ...]


@dataclasses.dataclass(frozen=True)
class Split:
    """Photographs for one purpose, in an order fixed by their bytes."""

    name: str
    photos: tuple[Photo, ...]
    labelled: bool
    #: where those that fail to decode are noted; shared by all splits
    broken: Broken = dataclasses.field(default_factory=Broken, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.photos)

    @property
    def fingerprint(self) -> str:
        """Return a hash of the photographs' bytes and labels, whatever their paths or order."""
        return _hash(sorted(f"{photo.digest} {photo.label}" for photo in self.photos))

    def batches(self, size: int, preprocess: Preprocess, limit: int | None = None) -> Iterator[Batch]:
        """Yield batches of `size` photographs, the last one maybe smaller, `limit` photographs in all.

        One that cannot be decoded is noted in `broken` and the next takes its place, so that only the last
        batch is ever short. Raises InputError where too many are broken, or where preprocessing leaves them
        in different sizes.
        """
        from concurrent.futures import ThreadPoolExecutor

        waiting = iter(self.photos)
        left = len(self.photos) if limit is None else limit
        with ThreadPoolExecutor(WORKERS) as pool:
            while left > 0 and (images := self._read(waiting, min(size, left), preprocess, pool)):
                left -= len(images)
                yield self._stack(images, preprocess)

    def _read(
        self, waiting: Iterator[Photo], count: int, preprocess: Preprocess, pool: Executor
    ) -> list[tuple[Photo, npt.NDArray[np.uint8]]]:
        """Take photographs until `count` are decoded or none is left."""

        def read(photo: Photo) -> npt.NDArray[np.uint8] | str:
            try:
                return preprocess.pixels(decode(photo.path))
            except InputError as error:
                return error.message

        images: list[tuple[Photo, npt.NDArray[np.uint8]]] = []
        sound = (photo for photo in waiting if photo.path not in self.broken)
        while chunk := list(itertools.islice(sound, count - len(images))):
            with pillow_warnings():
                results = list(pool.map(read, chunk))
            for photo, result in zip(chunk, results, strict=True):
                if isinstance(result, str):
                    self.broken.add(photo.path, result)
                else:
                    images.append((photo, result))
        return images

    def _stack(self, images: list[tuple[Photo, npt.NDArray[np.uint8]]], preprocess: Preprocess) -> Batch:
        import numpy as np

        photos, pixels = tuple(photo for photo, _ in images), [image for _, image in images]
        shapes = {image.shape[:2] for image in pixels}
        if len(shapes) > 1:
            (h, w), (other_h, other_w) = sorted(shapes)[:2]
            raise InputError(
                f"Photographs come in different sizes, such as {h}×{w} and {other_h}×{other_w}, "
                "and cannot go into one batch.",
                hint="Give the preprocessing a crop, or resize = [height, width].",
            )
        labels = np.array([photo.label for photo in photos], np.int64) if self.labelled else None
        return Batch(preprocess.normalise(np.stack(pixels)), labels, photos)


@dataclasses.dataclass(frozen=True)
class Data:
    """A folder of photographs, opened. `classes` has a name for each index; it is empty where unlabelled."""

    root: Path
    classes: tuple[str, ...]
    #: to measure ranges of activations
    calibrate: Split
    #: to train on
    train: Split
    #: to choose between candidates
    select: Split
    #: touched once, for the report
    test: Split
    warnings: tuple[str, ...]
    #: grows while photographs are decoded
    broken: Broken

    @property
    def fingerprint(self) -> str:
        """Return a hash that changes when any photograph, label, class or split does."""
        splits = (self.calibrate, self.train, self.select, self.test)
        return _hash([*(f"{split.name} {split.fingerprint}" for split in splits), *map(repr, self.classes)])


def open_data(
    folder: Path,
    *,
    outputs: int | None = None,
    labels: tuple[str, ...] = (),
    max_broken: float = 0.05,
    calibrate: int = 256,
    seed: int = 0,
    progress: Progress | None = None,
) -> Data:
    """Find the photographs under `folder`, match their classes with a model's outputs, and split them.

    Raises InputError where there are fewer than two photographs, where more than the share `max_broken`
    cannot be read, and where classes and outputs do not match.
    """
    layout = read_layout(folder)
    classes: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    index: dict[str, int] = {}
    if layout.classes:
        classes, index, remarks = index_classes(layout.classes, read_listing(folder), outputs, labels)
    warnings = [*layout.warnings, *remarks]
    broken = Broken(folder, most=max_broken)
    parts = _identify(layout, index, broken, progress or Silent())
    parts = _distinct(parts, classes, warnings)
    if sum(map(len, parts.values())) < 2:
        raise InputError(
            f"{folder} holds fewer than two different photographs that can be read.",
            hint="One is needed to calibrate with and another to test with; a few hundred are better.",
        )

    def split(name: str, photos: list[Photo]) -> Split:
        labelled = bool(classes) and all(photo.label is not None for photo in photos)
        return Split(name, tuple(sorted(photos, key=lambda photo: photo.digest)), labelled, broken)

    splits = {name: split(name, photos) for name, photos in _divide(parts, calibrate, seed).items()}
    return Data(folder, classes, **splits, warnings=tuple(warnings), broken=broken)


def _identify(
    layout: Layout, index: dict[str, int], broken: Broken, progress: Progress
) -> dict[str, list[Photo]]:
    """Hash every file and look at its header; leave out the broken ones."""
    from concurrent.futures import ThreadPoolExecutor

    found = [(part, path, name) for part, photos in layout.parts.items() for path, name in photos]
    progress.begin("looking at photographs", len(found))

    def look(path: Path) -> tuple[str, str]:
        try:
            return identify(path), ""
        except InputError as error:
            return "", error.message

    parts: dict[str, list[Photo]] = {part: [] for part in layout.parts}
    with pillow_warnings(), ThreadPoolExecutor(WORKERS) as pool:
        for (part, path, name), (digest, reason) in zip(
            found, pool.map(look, [p for _, p, _ in found]), strict=True
        ):
            if reason:
                broken.add(path, reason)
            else:
                parts[part].append(Photo(path, None if name is None else index[name], digest))
            progress.advance()
    broken.total = len(found)
    broken.check()
    progress.end(
        f"{len(found) - len(broken)} photographs" + (f", {len(broken)} broken" if len(broken) else "")
    )
    return parts


def _distinct(
    parts: dict[str, list[Photo]], classes: tuple[str, ...], warnings: list[str]
) -> dict[str, list[Photo]]:
    """Keep every content once, under its lowest label: in test, else validation, else select, else train."""
    taken: dict[str, tuple[str, Photo]] = {}
    leaks: dict[tuple[str, str], int] = {}
    twice, torn = 0, []
    for part in sorted(parts, key=("test", "validation", "select", "train", "all").index):
        for photo in sorted(
            parts[part], key=lambda photo: (photo.label is None, photo.label or 0, photo.path)
        ):
            home, first = taken.setdefault(photo.digest, (part, photo))
            if first is photo:
                continue
            if home == part:
                twice += 1
            else:
                leaks[home, part] = leaks.get((home, part), 0) + 1
            if None not in (first.label, photo.label) and first.label != photo.label:
                torn.append((first, photo))
    for (home, part), count in leaks.items():
        warnings.append(f"Photographs in both {home} and {part}, kept in {home} only: {count}.")
    if twice:
        warnings.append(f"Photographs that are copies of others, left out: {twice}.")
    if torn:
        first, photo = torn[0]
        names = [classes[p.label] for p in (first, photo) if p.label is not None]
        warnings.append(
            f"Photographs under two labels, of which the first is used: {len(torn)}, such as "
            f"{first.path} ({names[0]}) and {photo.path} ({names[1]})."
        )
    return {part: [photo for home, photo in taken.values() if home == part] for part in parts}


def _divide(parts: dict[str, list[Photo]], calibrate: int, seed: int) -> dict[str, list[Photo]]:
    """Return the photographs of each split, calibration and test never empty."""
    test, validation = parts.get("test", []), parts.get("validation", [])
    train = parts.get("train", []) + parts.get("all", [])
    if not test:
        test, validation = validation, []
    select = parts.get("select", []) + validation
    if not test and len(train) > 1:
        test, train = _carve(train, "test", seed, TEST_SHARE)
    elif not test:
        test, select = _carve(select, "test", seed, TEST_SHARE) if len(select) > 1 else (select, [])
    if not select:
        select, train = _carve(train, "select", seed, SELECT_SHARE, SELECT_MOST)
    if train:
        spare = len(train) if len(train) <= FEW else len(train) // 2
        sample, train = _draw(train, min(calibrate, spare), seed)
    elif select:
        sample, select = _draw(select, min(calibrate, len(select) // 2), seed)
    else:
        sample, test = _draw(test, min(calibrate, len(test) // 2), seed)
    return {"calibrate": sample, "train": train, "select": select, "test": test}


def _carve(
    photos: list[Photo], name: str, seed: int, share: float, most: int | None = None
) -> tuple[list[Photo], list[Photo]]:
    """Return a part of about `share` and the rest; whether a photograph belongs depends on its bytes alone,
    unless the part would be empty, be everything, or be more than `most`.
    """
    ranked = sorted(photos, key=lambda photo: _rank(photo, name, seed))
    count = sum(_rank(photo, name, seed) < share for photo in photos)
    count = max(1, min(count, len(photos) - 1, most or count)) if len(photos) > 1 else 0
    return ranked[:count], ranked[count:]


def _draw(photos: list[Photo], most: int, seed: int) -> tuple[list[Photo], list[Photo]]:
    """Return `most` photographs, but one at least; and the rest."""
    ranked = sorted(photos, key=lambda photo: _rank(photo, "calibrate", seed))
    count = max(1, most)
    return ranked[:count], ranked[count:]


def _rank(photo: Photo, name: str, seed: int) -> float:
    """Return a number from 0 to 1, drawn from the photograph's bytes for this purpose."""
    return int(_hash([photo.digest, name, str(seed)])[:12], 16) / 16**12


def _hash(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
