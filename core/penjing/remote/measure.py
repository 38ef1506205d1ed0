"""Measuring a run's bundle on its board, and what the report gets of that."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from penjing import interval
from penjing.errors import PenjingError, StepError
from penjing.host import Host
from penjing.remote.copying import Parcel, persist, send
from penjing.remote.deploy import (
    SPARE,
    Place,
    bring,
    bundle_of,
    check,
    failed,
    name_of,
    original_of,
    photos_of,
    piece,
    runner,
)  # fmt: skip
from penjing.remote.original import bundled, check_runner
from penjing.remote.record import apply, keep
from penjing.remote.ssh import LostError

if TYPE_CHECKING:
    from penjing.photos import Photo
    from penjing.remote.ssh import Board
    from penjing.report import Report
    from penjing.step import Progress

#: exit code of the runner where an image could not be read, and the others could
FAILED_IMAGE = 1


def measure(
    folder: Path,
    place: Place,
    progress: Progress,
    *,
    seconds: int = 10,
    photos: int = 200,
    original: bool = True,
    host: Host | None = None,
) -> Report:
    """Time the bundle of a run on its board, score it there on test photographs, and renew the run's report.

    The bundle is brought there where it is missing, and with `original` one of the original to be timed in turn.
    At most `photos` photographs are copied, and removed after.
    Raises InputError where there is no sound bundle, StepError where the board refuses or the connection stays lost.
    """
    from penjing import report as reports
    from penjing.again import report_of
    from penjing.run import locked

    manifest, host = bundle_of(folder), host or Host()
    path = place.on_board(folder)
    if original:
        check_runner(folder)
    with locked(folder):
        report = reports.read(report_of(folder))
        chosen, why = _choose(report, manifest, photos)
        with place.board(manifest) as board:
            facts = bring(board, folder / "bundle", manifest, path, progress)
            _build(board, path, manifest, progress, "the engine")
            checked = persist(lambda: check(board, path, progress), progress)
            beside = _bring_original(board, folder, path, report, progress, host) if original else ""
            timed = _time(board, path, seconds, beside, progress)
            try:
                answers = _ask(board, path, chosen, progress) if chosen else {}
            finally:
                with contextlib.suppress(StepError):  # what matters then is why the work stopped
                    board.ask("clean_photos", photos=photos_of(path))
        record = _record(place, facts, checked, timed)
        record |= _score(folder, report, chosen, answers, why, host, progress)
        keep(folder, report, record)
        apply(report, record)
        reports.write(report, folder)
    return report


def _build(board: Board, path: str, manifest: dict[str, Any], progress: Progress, what: str) -> None:
    """Build the engine of the bundle at a path, where it takes one and there is none."""
    if manifest["runtime"]["name"] == "tensorrt":
        with piece(progress, f"building {what} on {board.host}, which takes minutes once") as result:
            built = persist(lambda: runner(board, path, ["--build", "--json"]), progress)
            result.append(str(built["engine"]))


def _bring_original(
    board: Board, folder: Path, path: str, report: Report, progress: Progress, host: Host
) -> str:
    """Copy a bundle of the original and build its engine; return its whole path on the board."""
    with bundled(folder, report, host) as (source, manifest), _or_left_out():
        there = original_of(path)
        facts = bring(board, source, manifest, there, progress, "the original")
        _build(board, there, manifest, progress, "the original's engine")
        return str(facts["path"])


def _time(board: Board, path: str, seconds: int, beside: str, progress: Progress) -> dict[str, Any]:
    words = ["--bench", "--json", "--seconds", str(seconds), *(["--beside", beside] if beside else [])]
    with piece(progress, f"timing on {board.host}") as result, _or_left_out() if beside else nullcontext():
        timed = persist(lambda: runner(board, path, words), progress)
        result.append(f"median {timed['median_ms']:.2f} ms")
    return timed


@contextlib.contextmanager
def _or_left_out() -> Iterator[None]:
    """Have errors tell that it can be done without the original."""
    try:
        yield
    except LostError:
        raise
    except StepError as error:
        hint = f"{error.hint} The original can be left out: --no-original.".strip()
        raise StepError(error.message, hint=hint) from error


def _choose(report: Report, manifest: dict[str, Any], most: int) -> tuple[list[Photo], str]:
    """Return test photographs to score on, and why there are none."""
    from penjing.data import open_data

    data = report["data"]
    if data is None or not most:
        return [], "no photographs were given"
    if manifest["preprocess"] is None:
        return [], "how photographs go in is not known"
    if manifest["task"] != "classification":
        return [], "the model does not classify"
    root = Path(data["root"])
    if not root.is_dir():
        return [], f"{root} is no longer there"
    labels = tuple(manifest["labels"])
    opened = open_data(
        root, outputs=len(labels) or None, labels=labels, max_broken=1.0, seed=report["environment"]["seed"]
    )
    if len(opened.test) != data["splits"].get("test"):
        return [], f"the photographs in {root} are no longer those of the run"
    sound = [photo for photo in opened.test.photos if photo.path not in opened.broken]
    return random.Random(0).sample(sound, min(most, len(sound))), ""  # a sample, no secret


def _ask(board: Board, path: str, photos: list[Photo], progress: Progress) -> dict[int, int]:
    """Return the class that the board names for each photograph it can read, by the photograph's place in the list."""
    parcel = Parcel({name_of(photo.path, index): photo.path for index, photo in enumerate(photos)})
    there, folder = board.ask("probe", path=path), photos_of(path)
    if there["free"] < parcel.size + SPARE:
        raise StepError(
            f"{board.host}: {there['free'] / 1e6:.0f} MB are free, and {len(photos)} photographs take "
            f"{parcel.size / 1e6:.0f} MB and some room.",
            hint="Copy fewer with --photos.",
        )
    send(board, parcel, folder, progress, f"{len(photos)} photographs")
    answers: dict[int, int] = {}
    progress.begin(f"asking {board.host}", len(photos))

    def line(text: str) -> None:
        try:
            said = json.loads(text)
            index = int(Path(said["image"]).stem)
            if "top" in said:
                answers[index] = int(said["top"][0]["class"])
        except (ValueError, KeyError, IndexError, TypeError):
            return  # nothing of the answer's form: the count at the end tells
        progress.advance()

    def attempt() -> None:
        code, said = board.run(path, [board_path(there["path"], folder), "--json", "--top", "1"], line)
        if code not in (0, FAILED_IMAGE):
            raise failed(board, code, said)

    try:
        persist(attempt, progress)
    finally:
        progress.end(f"{len(answers)} answers")
    return answers


def board_path(bundle: str, folder: str) -> str:
    """Return the whole path of a folder beside the bundle, so that the runner finds it from its own folder."""
    return f"{bundle.rpartition('/')[0]}/{folder.rpartition('/')[2]}"


def _record(
    place: Place, facts: dict[str, Any], checked: dict[str, Any], timed: dict[str, Any]
) -> dict[str, Any]:
    """Return the report's record of what the board told and how fast it was."""
    from datetime import datetime, timezone

    try:
        after = timed["machine"]["after"]
        return {
            "host": place.host,
            "path": facts["path"],
            "measured": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "machine": str(after.get("cpu", "")),
            "arch": str(facts["arch"]),
            "python": str(facts["python"]),
            "runtime": f"{timed['runtime']} {timed['version']}",
            "power_mode": str(after.get("power_mode", "")),
            "batch": timed["batch"],
            "latency": _latency(timed, timed["threads"])
            | {"speedup": timed.get("speedup"), "speedup_interval": timed.get("speedup_interval")},
            "original": _latency(timed["beside"], timed["threads"]) if "beside" in timed else None,
            "state": timed["machine"],
            "engine": timed["engine"],
            "check": {"distance": checked["distance"], "tolerance": checked["tolerance"]},
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise StepError(
            f"{place.host} answers what no runner of this version would: {error} is missing.",
            hint="Deploy the bundle again with `penjing deploy`.",
        ) from error


def _latency(timed: dict[str, Any], threads: int) -> dict[str, Any]:
    """Return the report's `latency` record of one model; the original's ratio to itself is 1."""
    return {
        "median_ms": timed["median_ms"],
        "p90_ms": timed["p90_ms"],
        "median_interval": timed["median_interval_ms"],
        "throughput_per_s": timed["throughput_per_s"],
        "runs": timed["runs"],
        "threads": threads,
        "speedup": 1.0,
        "speedup_interval": [1.0, 1.0],
    }


def _score(
    folder: Path,
    report: Report,
    photos: list[Photo],
    answers: dict[int, int],
    why: str,
    host: Host,
    progress: Progress,
) -> dict[str, Any]:
    """Return the report's record of how often the board was right, and of one mind with the workstation."""
    record: dict[str, Any] = {"accuracy": None, "accuracy_why": why, "agreement": None, "agreement_n": None}
    if not answers:
        return record | {"accuracy_why": why or "the board could read none of the photographs"}
    pairs = [(photos[index], found) for index, found in sorted(answers.items()) if 0 <= index < len(photos)]
    right = [photo.label == found for photo, found in pairs if photo.label is not None]
    if right:
        record["accuracy"] = {
            "metric": "top-1", "value": sum(right) / len(right), "n": len(right),
            "interval": list(interval.share(sum(right), len(right))),
            "drop": None, "drop_interval": None, "retained": None,
        }  # fmt: skip
    else:
        record["accuracy_why"] = "the photographs have no labels"
    try:
        here = _answers_here(folder, report, [photo for photo, _ in pairs], host)
    except PenjingError as error:  # what the board answered stands all the same
        progress.warn(f"The board's answers are compared with none of this machine: {error.message}")
        return record
    same = sum(found == wanted for (_, found), wanted in zip(pairs, here, strict=True))
    return record | {"agreement": same / len(pairs), "agreement_n": len(pairs)}


def _answers_here(folder: Path, report: Report, photos: list[Photo], host: Host) -> list[int]:
    """Return the class that the workstation's model names for each photograph."""
    import numpy as np

    from penjing.again import backend_of, reported_model
    from penjing.api import described
    from penjing.photos import read_photo
    from penjing.preprocess import Preprocess

    asked = described(folder)
    device, backend = host.device(asked["device"]), backend_of(host, asked)
    model = reported_model(host, folder, report["columns"][-1])
    preprocess = Preprocess.from_dict(asked["preprocess"])
    session, batch = backend.open(model, device), model.inputs[0].shape[0] or 1
    return [
        int(np.argmax(session(preprocess(read_photo(photo.path))[None].repeat(batch, axis=0))[0][0]))
        for photo in photos
    ]
