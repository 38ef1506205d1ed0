"""What a folder of photographs means: splits, classes, or just photographs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from penjing.errors import InputError
from penjing.photos import SUFFIXES

SPLITS = {
    "train": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "select": "select",
    "test": "test",
}

Identity = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Layout:
    """The photographs of a folder, not yet opened: for each of "train", "validation", "select", "test" or
    "all", where there is one, paths with the name of their class (None where unlabelled).
    """

    parts: dict[str, list[tuple[Path, str | None]]]
    #: names of class folders in sorted order; empty where the folder has no classes
    classes: tuple[str, ...]
    warnings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Level:
    """A folder: photographs directly in it, and those anywhere in each sub-folder."""

    path: Path
    loose: list[Path]
    folders: dict[str, list[Path]]

    @property
    def filled(self) -> list[str]:
        return [name for name, photos in self.folders.items() if photos]

    @property
    def everything(self) -> list[Path]:
        return self.loose + [path for photos in self.folders.values() for path in photos]


def read_layout(root: Path) -> Layout:
    """Find the photographs under `root` and what its folders mean; InputError where there is none.

    Folders are classes where at least two hold photographs; `images/` beside `labels/` is none. Links are
    followed, except up to a folder that contains them.
    """
    if not root.is_dir():
        raise InputError(
            f"{root} is {'a file, not a folder' if root.exists() else 'not there'}.",
            hint="Give the folder that holds the photographs.",
        )
    resolved = root.resolve()
    above = frozenset(map(_identity, (resolved, *resolved.parents)))
    top = _level(root, above)
    if not top.everything:
        raise InputError(
            f"{root} holds no photograph.",
            hint=f"Photographs are files ending in {', '.join(sorted(SUFFIXES))}.",
        )
    warnings: list[str] = []
    levels = _splits(top, above, warnings) or [("all", top)]
    if any(len(level.filled) > 1 for _, level in levels):
        return _labelled(levels, warnings)
    return _unlabelled(levels, above, warnings)


def _splits(top: _Level, above: frozenset[Identity], warnings: list[str]) -> list[tuple[str, _Level]]:
    """Return the split folders, test first; none where a folder called `train` is a class among others."""
    named = [name for name in top.filled if name.lower() in SPLITS]
    others = [name for name in top.filled if name not in named]
    levels = [(SPLITS[name.lower()], _level(top.path / name, above)) for name in named]
    is_split = (
        not others
        or len({role for role, _ in levels}) > 1
        or any(len(level.filled) > 1 for _, level in levels)
    )
    if not levels or not is_split:
        return []
    ignored = len(top.everything) - sum(len(level.everything) for _, level in levels)
    if ignored:
        warnings.append(f"Photographs outside {_names(named)}, left out: {ignored}.")
    return sorted(levels, key=lambda pair: ("test", "validation", "select", "train").index(pair[0]))


def _labelled(levels: list[tuple[str, _Level]], warnings: list[str]) -> Layout:
    parts: dict[str, list[tuple[Path, str | None]]] = {}
    for role, level in levels:
        photos: list[tuple[Path, str | None]]
        if level.filled:
            photos = [(path, name) for name, paths in level.folders.items() for path in paths]
            if level.loose:
                warnings.append(
                    f"Photographs in {level.path.name}/ but in no class, left out: {len(level.loose)}."
                )
        elif role == "train":
            photos = [(path, None) for path in level.loose]
            warnings.append(
                f"{level.path.name}/ has no class folders: its photographs are used without labels."
            )
        else:
            photos = []
            warnings.append(f"{level.path.name}/ has no class folders: it is left out.")
        if photos:
            parts.setdefault(role, []).extend(photos)
    classes = tuple(sorted({name for _, level in levels if level.filled for name in level.folders}))
    _warn_of_classes(classes, parts, warnings)
    return Layout(parts, classes, tuple(warnings))


def _unlabelled(levels: list[tuple[str, _Level]], above: frozenset[Identity], warnings: list[str]) -> Layout:
    parts: dict[str, list[tuple[Path, str | None]]] = {}
    for role, level in levels:
        parts.setdefault(role, []).extend((path, None) for path in level.everything)
        if len(level.filled) == 1 and not level.loose:
            inner = level.path / level.filled[0]
            if len(_level(inner, above).filled) > 1:
                warnings.append(
                    f"{inner} is the only folder with photographs, so its sub-folders are not taken as "
                    "classes; if they are, give that folder."
                )
    return Layout(parts, (), tuple(warnings))


def _warn_of_classes(
    classes: tuple[str, ...], parts: dict[str, list[tuple[Path, str | None]]], warnings: list[str]
) -> None:
    seen = {role: {name for _, name in photos} for role, photos in parts.items()}
    empty = [name for name in classes if not any(name in names for names in seen.values())]
    if empty:
        warnings.append(f"No photograph in {_names(empty)}; each keeps its class index.")
    if seen.get("train", {None}) != {None}:
        late = [name for name in classes if name not in seen["train"] and name not in empty]
        if late:
            warnings.append(f"Classes in other splits, but not in train: {_names(late)}.")
    folded: dict[str, str] = {}
    warnings.extend(
        f"Classes {twin!r} and {name!r} differ only in case: are they one?"
        for name in classes
        if (twin := folded.setdefault(name.casefold(), name)) != name
    )


def _names(names: Iterable[str], most: int = 5) -> str:
    shown = [f"{name}/" for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if shown[most:] else "")


def _level(folder: Path, above: frozenset[Identity]) -> _Level:
    """Read a folder; `above` are those that contain it, where a link back ends."""
    above |= {_identity(folder)}
    folders, loose = _listing(folder)
    inside = {path.name: _walk(path, above) for path in folders if _identity(path) not in above}
    return _Level(folder, loose, inside)


def _walk(folder: Path, above: frozenset[Identity]) -> list[Path]:
    """Return all photographs under `folder`, going into each real folder once."""
    seen, photos, todo = set(above), [], [folder]
    while todo:
        here = todo.pop()
        if (identity := _identity(here)) in seen:
            continue
        seen.add(identity)
        folders, found = _listing(here)
        photos += found
        todo += reversed(folders)
    return photos


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """Return sub-folders and photographs of a folder, each sorted by name; hidden ones are left out."""
    try:
        visible = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
        folders = [path for path in visible if path.is_dir()]
    except OSError as error:
        raise InputError(
            f"The folder {folder} cannot be listed: {error.strerror or error}.", hint="Check its permissions."
        ) from error
    inner = set(folders)
    return folders, [path for path in visible if path not in inner and path.suffix.lower() in SUFFIXES]


def _identity(folder: Path) -> Identity:
    """Return what tells a folder from all others, however it was reached."""
    status = folder.stat()
    return status.st_dev, status.st_ino
