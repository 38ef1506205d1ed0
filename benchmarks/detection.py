"""FastestDet's boxes, and their average precision at an overlap of one half (AP50)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from networks import Place
    from penjing.plan import Plan

Array = npt.NDArray[np.float64]

CLASSES = 80
#: least score of a box, and the overlap from which of two boxes of a class the weaker one goes
LEAST, OVERLAP = 0.01, 0.45


def boxes(output: npt.NDArray[np.float32]) -> Array:
    """Return boxes [n, 6] (left, top, right, bottom as shares of the image, score, class) of an output [85, h, w].

    The channels are objectness, x, y, width, height and scores of the classes; a box lies at (cell + tanh) / cells
    and is sigmoid wide; its score is objectness^0.6 · class^0.4.
    """
    _, height, width = output.shape
    values = output.astype(np.float64)
    rows, columns = np.mgrid[:height, :width]
    x, y = (columns + np.tanh(values[1])) / width, (rows + np.tanh(values[2])) / height
    w, h = (1 / (1 + np.exp(-np.clip(values[i], -50, 50))) for i in (3, 4))
    kind = values[5:].argmax(axis=0)
    score = np.clip(values[0], 0, None) ** 0.6 * np.clip(values[5:].max(axis=0), 0, None) ** 0.4
    found = np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, score, kind], axis=-1).reshape(-1, 6)
    return suppressed(found[found[:, 4] >= LEAST])


def suppressed(found: Array) -> Array:
    """Return boxes, the best first, without those that overlap a better one of their class."""
    found, kept = found[np.argsort(-found[:, 4], kind="stable")], []
    while len(found):
        kept.append(found[0])
        rival = (overlap(found[0], found) >= OVERLAP) & (found[:, 5] == found[0, 5])
        rival[0] = True
        found = found[~rival]
    return np.array(kept).reshape(-1, 6)


def overlap(box: Array, others: Array) -> Array:
    """Return the intersection over union of a box with others."""
    width = np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0])
    height = np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1])
    both = np.clip(width, 0, None) * np.clip(height, 0, None)
    areas = (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    shares: Array = both / np.maximum((box[2] - box[0]) * (box[3] - box[1]) + areas - both, 1e-12)
    return shares


def average_precision(found: list[Array], truth: list[Array]) -> float:
    """Return the mean over classes that occur of average precision at 101 recalls, at an overlap of one half.

    `found` has each image's boxes, `truth` its true ones [n, 5] (left, top, right, bottom, class).
    """
    kinds = {int(kind) for boxes_ in truth for kind in boxes_[:, 4]}
    return float(np.mean([_of_class(kind, found, truth) for kind in sorted(kinds)])) if kinds else 0.0


def _of_class(kind: int, found: list[Array], truth: list[Array]) -> float:
    true = [boxes_[boxes_[:, 4] == kind] for boxes_ in truth]
    taken = [np.zeros(len(boxes_), bool) for boxes_ in true]
    ranked = sorted(
        ((float(box[4]), image, box) for image, all_ in enumerate(found) for box in all_ if box[5] == kind),
        key=lambda entry: -entry[0],
    )
    hits = np.zeros(len(ranked))
    for number, (_, image, box) in enumerate(ranked):
        if not len(true[image]):
            continue
        shares = np.where(taken[image], -1, overlap(box, true[image]))
        best = int(shares.argmax())
        if shares[best] >= 0.5:
            taken[image][best], hits[number] = True, 1
    if not len(hits):
        return 0.0
    right = hits.cumsum()
    precision, recall = right / np.arange(1, len(hits) + 1), right / sum(map(len, true))
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    places = np.searchsorted(recall, np.linspace(0, 1, 101))
    return float(
        np.where(places < len(precision), precision[np.minimum(places, len(precision) - 1)], 0).mean()
    )


def true_boxes(label: Path) -> Array:
    """Return the boxes of a YOLO label file: a line each of class, centre and size as shares of the image."""
    lines = label.read_text().split("\n") if label.is_file() else []
    numbers = np.array([line.split() for line in lines if line.strip()], np.float64).reshape(-1, 5)
    kind, x, y, w, h = numbers.T
    return np.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2, kind], axis=1)


def ap50(session: Any, planned: Plan, place: Place) -> float:
    """Return the AP50 of a session on the test photographs of a plan."""
    data, preprocess = planned.data, planned.model.preprocess
    assert data is not None and preprocess is not None
    labels = place.find("data/coco128/validation/labels")
    found, truth = [], []
    for batch in data.test.batches(1, preprocess):
        found.append(boxes(session(batch.inputs)[0][0]))
        truth.append(true_boxes(labels / f"{batch.photos[0].path.stem}.txt"))
    return average_precision(found, truth)
