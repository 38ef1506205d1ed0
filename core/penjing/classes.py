"""Which output of the model a class folder belongs to."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from penjing.errors import InputError

LISTING = "classes.txt"
MAX_FILE = 2**20


def index_classes(
    folders: tuple[str, ...], listed: tuple[str, ...], outputs: int | None, labels: tuple[str, ...]
) -> tuple[tuple[str, ...], dict[str, int], tuple[str, ...]]:
    """Return the class names by index, each folder's index, and warnings.

    `folders` are in sorted order, which is torchvision's convention. `listed` (classes.txt) overrides it.
    Raises InputError where the folders cannot be matched with a model of `outputs` outputs called `labels`.
    """
    if listed:
        return listed, _by_listing(folders, listed, outputs), ()
    by_label = _by_label(folders, labels)
    numbers = [int(name) if name.isascii() and name.isdecimal() else -1 for name in folders]
    in_order = {name: index for index, name in enumerate(folders)}
    if outputs is None or len(folders) == outputs:
        if by_label and len(labels) == len(folders):
            return labels, by_label, ()  # their names say more than their order
        warnings: tuple[str, ...] = ()
        if min(numbers) >= 0 and numbers != sorted(numbers):
            warnings = (
                f"The class folders are numbers, but sorted as text, as torchvision does: {_order(folders)}. "
                f"If your model counts them otherwise, list them in {LISTING}, one to a line.",
            )
        return folders, in_order, warnings
    if min(numbers) >= 0 and max(numbers) < outputs and len(set(numbers)) == len(numbers):
        by_number = dict(zip(folders, numbers, strict=True))
        return _names(by_number, outputs, labels), by_number, ()
    if by_label and len(labels) <= outputs:
        return _names(by_label, outputs, labels), by_label, ()
    raise InputError(
        f"There are {len(folders)} class folders, but the model has {outputs} outputs.",
        hint=f"Name the folders by index (0, 1, …), or list the model's {outputs} classes in {LISTING}, "
        "one to a line.",
    )


def read_listing(root: Path) -> tuple[str, ...]:
    """Return the class names listed in `classes.txt` under `root`; none where there is no such file."""
    path = root / LISTING
    if not path.exists():
        return ()
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE + 1)
        if len(text) > MAX_FILE:
            raise InputError(f"{path} is larger than {MAX_FILE // 2**20} MiB.")
        names = tuple(line.strip() for line in text.decode("utf-8-sig").splitlines() if line.strip())
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text: {error}.") from error
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice or not names:
        raise InputError(
            f"{path} names {twice[0]!r} twice." if twice else f"{path} is empty.",
            hint="It lists the model's classes, one to a line, in the order of its outputs.",
        )
    return names


def _by_listing(folders: tuple[str, ...], listed: tuple[str, ...], outputs: int | None) -> dict[str, int]:
    if outputs is not None and len(listed) != outputs:
        raise InputError(
            f"{LISTING} lists {len(listed)} classes, but the model has {outputs} outputs.",
            hint="List one class for each output, in their order.",
        )
    # file systems differ in how they write letters with accents
    index = {unicodedata.normalize("NFC", name): i for i, name in enumerate(listed)}
    found = {name: index.get(unicodedata.normalize("NFC", name)) for name in folders}
    missing = [name for name, i in found.items() if i is None]
    if missing:
        raise InputError(
            f"The class folder {missing[0]!r} is not in {LISTING}"
            + (f", nor are {len(missing) - 1} others." if missing[1:] else "."),
            hint="Every class folder needs its line.",
        )
    return {name: i for name, i in found.items() if i is not None}


def _by_label(folders: tuple[str, ...], labels: tuple[str, ...]) -> dict[str, int]:
    """Return the index of the label each folder is called after; none where that is not one for each."""
    plain = [_plain(label) for label in labels]  # ImageNet has two called "crane"
    index = {label: i for i, label in enumerate(plain) if plain.count(label) == 1}
    found = {name: index[_plain(name)] for name in folders if _plain(name) in index}
    return found if len(found) == len(set(found.values())) == len(folders) else {}


def _plain(name: str) -> str:
    return "".join(unicodedata.normalize("NFC", name).casefold().replace("_", " ").split())


def _names(index: dict[str, int], outputs: int, labels: tuple[str, ...]) -> tuple[str, ...]:
    """Return a name for each output: the model's own label, else its folder's, else its number."""
    if len(labels) == outputs:
        return labels
    by_index = {i: name for name, i in index.items()}
    return tuple(by_index.get(i, str(i)) for i in range(outputs))


def _order(folders: tuple[str, ...]) -> str:
    return ", ".join(folders[:4]) + (", …" if len(folders) > 4 else "")
