import itertools
import os
import struct
import warnings
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing.data import Broken, Data, Photo, Split, _divide, open_data, read_photo
from penjing.errors import InputError
from penjing.preprocess import Preprocess
from PIL import Image

AS_IS = Preprocess(scale=1.0, mean=(0, 0, 0), std=(1, 1, 1))
_seeds = itertools.count()


def save(path: Path, content: int | None = None, size: tuple[int, int] = (6, 5)) -> Path:
    """Write a small photograph; the same `content` gives the same bytes, none gives bytes of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(10**6 + next(_seeds) if content is None else content)
    Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(path)
    return path


def fill(folder: Path, count: int, suffix: str = ".png") -> None:
    for i in range(count):
        save(folder / f"{i}{suffix}")


def splits(data: Data) -> tuple[Split, ...]:
    return data.calibrate, data.train, data.select, data.test


def labels(data: Data) -> dict[str, int | None]:
    """Return the label of every class folder."""
    return {photo.path.parent.name: photo.label for split in splits(data) for photo in split.photos}


def digests(photos: Iterable[Photo]) -> set[str]:
    return {photo.digest for photo in photos}


# --- layouts --------------------------------------------------------------------------------------


def test_sub_folders_are_classes_in_sorted_order(tmp_path: Path) -> None:
    for name in ("dog", "cat", "Zebra"):
        fill(tmp_path / name / "nested", 4)

    data = open_data(tmp_path, outputs=3)

    assert data.classes == ("Zebra", "cat", "dog")
    for split in splits(data):
        for photo in split.photos:
            assert data.classes[photo.label] == photo.path.parent.parent.name
    assert sum(map(len, splits(data))) == 12
    assert data.warnings == ()


@pytest.mark.parametrize("validation", ["validation", "val", "valid"])
def test_train_validation_and_test_folders_are_used_as_named(tmp_path: Path, validation: str) -> None:
    for part, name in itertools.product(("train", validation, "test"), ("a", "b")):
        fill(tmp_path / part / name, 20)

    data = open_data(tmp_path, outputs=2)

    def parts(split: Split) -> set[str]:
        return {photo.path.relative_to(tmp_path).parts[0] for photo in split.photos}

    assert [parts(split) for split in splits(data)] == [{"train"}, {"train"}, {validation}, {"test"}]
    assert [len(split) for split in splits(data)] == [20, 20, 40, 40]


def test_photographs_to_choose_by_can_be_named(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "validation", "select"), ("a", "b")):
        fill(tmp_path / part / name, 20)

    def parts(split: Split) -> set[str]:
        return {photo.path.relative_to(tmp_path).parts[0] for photo in split.photos}

    data = open_data(tmp_path, outputs=2)
    assert [parts(split) for split in splits(data)] == [{"train"}, {"train"}, {"select"}, {"validation"}]
    assert len(data.select) == 40

    for name in ("a", "b"):
        fill(tmp_path / "test" / name, 20)
    data = open_data(tmp_path, outputs=2)
    assert [parts(split) for split in splits(data)][2:] == [{"select", "validation"}, {"test"}]


def test_validation_is_the_test_where_there_is_no_other(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "val"), ("a", "b")):
        fill(tmp_path / part / name, 25)

    data = open_data(tmp_path)

    assert len(data.test) == 50
    assert all("val" in photo.path.parts for photo in data.test.photos)
    assert min(map(len, splits(data))) > 0


def test_validation_alone_gives_up_some_to_calibrate(tmp_path: Path) -> None:
    fill(tmp_path / "validation" / "a", 5)
    fill(tmp_path / "validation" / "b", 5)

    data = open_data(tmp_path, calibrate=3)

    assert [len(split) for split in splits(data)] == [3, 0, 0, 7]


@pytest.mark.parametrize("folder", [".", "images", "images/deep"])
def test_a_folder_without_classes_is_unlabelled(tmp_path: Path, folder: str) -> None:
    fill(tmp_path / folder, 12)
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "0.txt").write_text("0 0.5 0.5 1 1")

    data = open_data(tmp_path, outputs=85)

    assert data.classes == ()
    assert not any(split.labelled for split in splits(data))
    assert sum(map(len, splits(data))) == 12
    assert next(data.test.batches(2, AS_IS)).labels is None


def test_splits_of_a_detection_data_set_are_unlabelled(tmp_path: Path) -> None:
    for part in ("train", "validation"):
        fill(tmp_path / part / "images", 6)
        (tmp_path / part / "labels").mkdir()

    data = open_data(tmp_path)

    assert (data.classes, len(data.test)) == ((), 6)


def test_one_folder_that_holds_several_is_unlabelled_but_says_so(tmp_path: Path) -> None:
    for name in "ab":
        fill(tmp_path / "flowers" / name, 3)

    data = open_data(tmp_path)

    assert data.classes == ()
    assert "flowers" in data.warnings[0]


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    for name in ("bus", "car", "train"):
        fill(tmp_path / name, 4)

    assert open_data(tmp_path, outputs=3).classes == ("bus", "car", "train")


def test_a_class_folder_that_holds_no_image_keeps_its_index(tmp_path: Path) -> None:
    fill(tmp_path / "a", 4)
    (tmp_path / "b").mkdir()
    fill(tmp_path / "c", 4)

    data = open_data(tmp_path, outputs=3)

    assert data.classes == ("a", "b", "c")
    assert labels(data) == {"a": 0, "c": 2}
    assert "b/" in data.warnings[0]


def test_a_class_may_be_missing_in_one_split(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "train/c", "test/b"):
        fill(tmp_path / folder, 4)

    data = open_data(tmp_path, outputs=3)

    assert {photo.label for photo in data.test.photos} == {1}
    assert data.warnings == ()


def test_a_class_that_train_lacks_is_told(tmp_path: Path) -> None:
    for folder in ("train/a", "train/c", "test/b"):
        fill(tmp_path / folder, 4)

    data = open_data(tmp_path, outputs=3)

    assert data.classes == ("a", "b", "c")
    assert "b/" in data.warnings[0]


def test_an_unlabelled_split_beside_labelled_ones_is_told(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "validation/a", "validation/b", "test"):
        fill(tmp_path / folder, 4)

    data = open_data(tmp_path, outputs=2)

    assert all("validation" in photo.path.parts for photo in data.test.photos)
    assert "test/" in data.warnings[0]


def test_unlabelled_training_photographs_serve_without_labels(tmp_path: Path) -> None:
    for folder, count in (("train", 60), ("test/a", 6), ("test/b", 6)):
        fill(tmp_path / folder, count)

    data = open_data(tmp_path, outputs=2)

    assert (data.calibrate.labelled, data.train.labelled, data.test.labelled) == (False, False, True)
    assert next(data.train.batches(2, AS_IS)).labels is None


def test_so_few_training_photographs_that_none_could_learn_all_calibrate(tmp_path: Path) -> None:
    for folder, count in (("train", 12), ("test", 6)):
        fill(tmp_path / folder, count)

    data = open_data(tmp_path)

    assert len(data.train) == 0
    assert len(data.calibrate) == 12 - len(data.select)


def test_photographs_outside_classes_and_splits_are_counted(tmp_path: Path) -> None:
    for folder in ("train/a", "train/b", "test/a", "test/b", "spare"):
        fill(tmp_path / folder, 4)
    fill(tmp_path / "train", 2)

    outside, loose = open_data(tmp_path, outputs=2).warnings

    assert outside.endswith("4.")
    assert loose.endswith("2.")


def test_hidden_files_and_other_files_are_no_photographs(tmp_path: Path) -> None:
    fill(tmp_path / "a", 3, ".PNG")
    fill(tmp_path / "b", 3, ".jpg")
    save(tmp_path / ".cache" / "x.png")
    save(tmp_path / "a" / ".thumbs" / "x.png")
    for name in (".DS_Store", "._0.png", "Thumbs.db", "notes.txt"):
        (tmp_path / "a" / name).write_bytes(b"no picture")

    data = open_data(tmp_path, outputs=2, max_broken=0)

    assert sum(map(len, splits(data))) == 6
    assert list(data.broken) == []


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    fill(tmp_path / "elsewhere" / "photos", 4)
    root = tmp_path / "data"
    fill(root / "a", 4)
    (root / "a" / "back").symlink_to(root)
    (root / "a" / "self").symlink_to(root / "a")
    (root / "top").symlink_to("..")
    (root / "here").symlink_to(".")
    (root / "b").symlink_to(tmp_path / "elsewhere" / "photos")
    (root / "c").mkdir()
    (root / "c" / "linked.png").symlink_to(save(tmp_path / "kept" / "one.png"))

    data = open_data(root, outputs=3)

    assert labels(data) == {"a": 0, "b": 1, "c": 2}
    assert sum(map(len, splits(data))) == 9


def test_a_link_to_itself_is_a_broken_photograph(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")

    data = open_data(tmp_path, max_broken=0.5)

    assert [path for path, _ in data.broken] == ["gone.jpg", "loop.jpg"]


def test_spaces_and_foreign_letters_in_paths_work(tmp_path: Path) -> None:
    root = tmp_path / "meine Fotos – 照片"
    fill(root / "Äpfel rot", 3)
    fill(root / "盆 景", 3)

    data = open_data(root, outputs=2)

    assert set(data.classes) == {"Äpfel rot", "盆 景"}
    assert sum(len(batch.photos) for split in splits(data) for batch in split.batches(4, AS_IS)) == 6


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "single"])
def test_a_folder_that_cannot_serve_is_refused_with_a_hint(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "photos"
    if kind == "file":
        save(tmp_path / "x.png").rename(folder)
    if kind in ("empty", "single"):
        (folder / "a" / "b").mkdir(parents=True)
    if kind == "single":
        save(folder / "a" / "x.png", 1)
        save(folder / "a" / "same.png", 1)

    with pytest.raises(InputError, match="photos") as caught:
        open_data(folder)

    assert caught.value.hint


# --- classes --------------------------------------------------------------------------------------


def make_classes(root: Path, *names: str) -> None:
    for name in names:
        fill(root / name, 3)


def test_the_listing_overrides_the_order(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b")
    (tmp_path / "classes.txt").write_text("b\nabsent\n\na\n", encoding="utf-8-sig")

    data = open_data(tmp_path, outputs=3)

    assert data.classes == ("b", "absent", "a")
    assert labels(data) == {"a": 2, "b": 0}


@pytest.mark.parametrize(
    ("text", "says"),
    [("a\n", "'b'"), ("a\nb\nc\n", "3 classes"), ("a\na\n", "twice"), ("\n", "empty"), ("a\nb\xff", "UTF-8")],
)
def test_a_listing_that_does_not_fit_is_refused(tmp_path: Path, text: str, says: str) -> None:
    make_classes(tmp_path, "a", "b")
    (tmp_path / "classes.txt").write_text(text, encoding="latin-1")

    with pytest.raises(InputError, match=says):
        open_data(tmp_path, outputs=None if text == "a\n" else 2)


def test_folders_named_by_index_serve_a_model_with_more_outputs(tmp_path: Path) -> None:
    make_classes(tmp_path, "0000", "0002", "0998")

    data = open_data(tmp_path, outputs=1000)

    assert labels(data) == {"0000": 0, "0002": 2, "0998": 998}
    assert len(data.classes) == 1000
    assert data.classes[:3] == ("0000", "1", "0002")


def test_folders_named_as_the_models_labels_serve_a_model_with_more_outputs(tmp_path: Path) -> None:
    make_classes(tmp_path, "golden retriever", "Tabby_Cat")
    names = ("crane", "tabby cat", "Golden_Retriever", "crane")

    data = open_data(tmp_path, outputs=4, labels=names)

    assert labels(data) == {"golden retriever": 2, "Tabby_Cat": 1}
    assert data.classes == names


def test_the_models_labels_say_more_than_the_order_of_folders(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b")

    assert labels(open_data(tmp_path, outputs=2, labels=("B", "A"))) == {"a": 1, "b": 0}


@pytest.mark.parametrize("names", [("a", "b", "c"), ("0", "1", "4"), ("1", "01"), ("crane", "a")])
def test_counts_that_differ_are_refused_with_both(tmp_path: Path, names: tuple[str, ...]) -> None:
    make_classes(tmp_path, *names)

    with pytest.raises(InputError, match=f"{len(names)} class folders.* 4 outputs") as caught:
        open_data(tmp_path, outputs=4, labels=("crane", "a", "b", "crane"))

    assert "classes.txt" in caught.value.hint


def test_numbers_sorted_as_text_are_told(tmp_path: Path) -> None:
    make_classes(tmp_path, "1", "2", "10")

    data = open_data(tmp_path, outputs=3)

    assert labels(data) == {"1": 0, "10": 1, "2": 2}
    assert "classes.txt" in data.warnings[0]


def test_two_classes_that_differ_only_in_case_are_told(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "A", "b")

    data = open_data(tmp_path, outputs=3)

    assert data.classes == ("A", "a", "b")
    assert "'A' and 'a'" in data.warnings[0]


# --- splits ---------------------------------------------------------------------------------------

sets = st.sets(st.integers(0, 10**6), max_size=60)


def photos(numbers: Iterable[int]) -> list[Photo]:
    return [Photo(Path(f"{n}.png"), None, f"{n:064x}") for n in numbers]


@settings(deadline=None)  # the machine may be busy
@given(
    st.dictionaries(st.sampled_from(["train", "validation", "select", "test"]), sets),
    st.integers(1, 40),
    st.integers(0, 9),
)
def test_splits_are_disjoint_complete_and_leave_none_to_calibrate_or_test_empty(
    parts, most: int, seed: int
) -> None:
    taken: set[int] = set()
    for name in parts:
        parts[name] -= taken
        taken |= parts[name]

    result = _divide({name: photos(numbers) for name, numbers in parts.items()}, most, seed)

    everything = [photo.digest for split in result.values() for photo in split]
    assert sorted(everything) == sorted(photo.digest for photo in photos(taken))
    if len(taken) > 1:
        assert result["test"]
        assert 1 <= len(result["calibrate"]) <= max(most, 1)


def test_a_photograph_stays_in_its_split_when_others_come(tmp_path: Path) -> None:
    few = _divide({"all": photos(range(500))}, 10**6, 0)
    many = _divide({"all": photos(range(1000))}, 10**6, 0)

    assert digests(few["test"]) <= digests(many["test"])
    assert digests(few["select"]) <= digests(many["select"])
    assert 250 < len(many["test"]) < 350
    assert 50 < len(many["select"]) < 90


def test_a_large_set_selects_on_at_most_five_hundred() -> None:
    assert len(_divide({"all": photos(range(9000))}, 256, 0)["select"]) == 500


def test_another_seed_splits_otherwise() -> None:
    one, two = (_divide({"all": photos(range(100))}, 20, seed) for seed in (0, 1))

    assert digests(one["test"]) != digests(two["test"])


@pytest.mark.parametrize("count", [2, 3, 5, 20])
def test_few_photographs_still_calibrate_and_test(tmp_path: Path, count: int) -> None:
    fill(tmp_path, count)

    data = open_data(tmp_path)

    assert len(data.calibrate) > 0
    assert len(data.test) > 0
    assert sum(map(len, splits(data))) == count


def test_splits_depend_on_bytes_and_not_on_paths(tmp_path: Path) -> None:
    for i in range(30):
        save(tmp_path / "one" / "ab"[i % 2] / f"{i}.png", i)
        save(tmp_path / "two" / "ab"[i % 2] / f"sub{i % 3}" / f"{99 - i}.PNG", i)

    one, two = open_data(tmp_path / "one"), open_data(tmp_path / "two")

    assert one.fingerprint == two.fingerprint
    for left, right in zip(splits(one), splits(two), strict=True):
        assert [photo.digest for photo in left.photos] == [photo.digest for photo in right.photos]
        assert left.fingerprint == right.fingerprint


def test_a_changed_byte_label_or_class_changes_the_fingerprint(tmp_path: Path) -> None:
    for i in range(10):
        save(tmp_path / "ab"[i % 2] / f"{i}.png", i)
    prints = [open_data(tmp_path).fingerprint]

    (tmp_path / "b").rename(tmp_path / "c")
    prints.append(open_data(tmp_path).fingerprint)
    (tmp_path / "a" / "0.png").rename(tmp_path / "c" / "0.png")
    prints.append(open_data(tmp_path).fingerprint)
    with (tmp_path / "c" / "1.png").open("ab") as file:
        file.write(b"\0")
    prints.append(open_data(tmp_path).fingerprint)

    assert len(set(prints)) == 4


def test_the_same_bytes_in_train_and_test_are_kept_in_test(tmp_path: Path) -> None:
    for part, name in itertools.product(("train", "validation", "test"), ("a", "b")):
        fill(tmp_path / part / name, 4)
    for part in ("train", "validation", "test"):
        save(tmp_path / part / "a" / "leak.png", 7)
        save(tmp_path / part / "b" / "leak.png", 8)

    data = open_data(tmp_path)

    assert (len(data.test), len(data.select), len(data.calibrate) + len(data.train)) == (10, 8, 8)
    assert len([text for text in data.warnings if "kept in test only: 2" in text]) == 2


def test_copies_within_a_split_are_used_once(tmp_path: Path) -> None:
    fill(tmp_path, 5)
    for i in range(3):
        save(tmp_path / f"copy{i}.png", 7)

    data = open_data(tmp_path)

    assert sum(map(len, splits(data))) == 6
    assert data.warnings[0].endswith("2.")


def test_the_same_bytes_under_two_labels_are_told_with_both_names(tmp_path: Path) -> None:
    make_classes(tmp_path, "a", "b")
    save(tmp_path / "a" / "x.png", 7)
    save(tmp_path / "b" / "y.png", 7)

    data = open_data(tmp_path)

    assert len([text for text in data.warnings if "x.png (a)" in text and "y.png (b)" in text]) == 1


# --- batches --------------------------------------------------------------------------------------


def test_batches_hold_every_photograph_once_in_the_same_order(tmp_path: Path) -> None:
    for i in range(21):
        save(tmp_path / "test" / "ab"[i % 2] / f"{i}.png")
    fill(tmp_path / "train", 2)
    data = open_data(tmp_path, outputs=2)

    batches = list(data.test.batches(8, AS_IS))

    assert [batch.inputs.shape for batch in batches] == [(8, 3, 5, 6), (8, 3, 5, 6), (5, 3, 5, 6)]
    assert tuple(photo for batch in batches for photo in batch.photos) == data.test.photos
    for batch in batches:
        assert (batch.inputs.dtype, batch.labels.dtype) == (np.float32, np.int64)
        for image, label, photo in zip(batch.inputs, batch.labels, batch.photos, strict=True):
            np.testing.assert_array_equal(image, AS_IS(Image.open(photo.path)))
            assert label == photo.label


@pytest.mark.parametrize(("limit", "sizes"), [(0, []), (3, [3]), (4, [4]), (6, [4, 2]), (99, [4, 4, 2])])
def test_a_limit_bounds_the_photographs(tmp_path: Path, limit: int, sizes: list[int]) -> None:
    fill(tmp_path / "test", 10)
    fill(tmp_path / "train", 2)

    batches = open_data(tmp_path).test.batches(4, AS_IS, limit=limit)

    assert [len(batch.photos) for batch in batches] == sizes


def test_sizes_that_differ_are_refused_with_a_hint(tmp_path: Path) -> None:
    for i in range(6):
        save(tmp_path / f"{i}.png", size=(6, 5 + i))
    data = open_data(tmp_path)

    with pytest.raises(InputError, match="different sizes") as caught:
        list(data.test.batches(6, AS_IS)) + list(data.calibrate.batches(6, AS_IS))

    assert "crop" in caught.value.hint


def test_an_empty_split_has_no_batches() -> None:
    assert list(Split("train", (), True).batches(4, AS_IS)) == []


# --- broken photographs ---------------------------------------------------------------------------


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims to be that large and holds nothing."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def truncated(suffix: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        whole = save(path.with_suffix(suffix), size=(60, 50))
        content = whole.read_bytes()
        whole.unlink()
        path.write_bytes(content[: len(content) * 2 // 3])

    return write


AT_SCAN = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("<html>not found</html>"),
    "corrupt": lambda path: path.write_bytes(b"\xff\xd8\xff\xe0" + bytes(100)),
    "bomb": lambda path: path.write_bytes(png_header(11000, 10000)),
    "great bomb": lambda path: path.write_bytes(png_header(60000, 60000)),
    "pipe": os.mkfifo,
}
REASONS = {
    "empty": "an empty file",
    "text": "not an image that can be read",
    "corrupt": "not an image that can be read",
    "bomb": "more than 89 million pixels",
    "great bomb": "more than 89 million pixels",
    "pipe": "not a regular file",
}
AT_DECODE = {"truncated JPEG": truncated(".jpg"), "truncated PNG": truncated(".png")}


@pytest.mark.parametrize("kind", AT_SCAN)
def test_a_photograph_broken_at_first_sight_is_named_and_left_out(tmp_path: Path, kind: str) -> None:
    fill(tmp_path, 9)
    AT_SCAN[kind](tmp_path / "bad.jpg")

    data = open_data(tmp_path, max_broken=0.1)

    assert sum(map(len, splits(data))) == 9
    ((path, reason),) = data.broken
    assert path == "bad.jpg"
    assert reason == REASONS[kind]


@pytest.mark.parametrize("kind", AT_DECODE)
def test_a_photograph_broken_inside_is_left_out_of_every_pass(tmp_path: Path, kind: str) -> None:
    fill(tmp_path / "train", 2)
    for i in range(9):
        save(tmp_path / "test" / f"{i}.png", size=(60, 50))
    AT_DECODE[kind](tmp_path / "test" / "bad.jpg")
    data = open_data(tmp_path, max_broken=0.1)
    assert list(data.broken) == []

    passes = [[batch.photos for batch in data.test.batches(4, AS_IS)] for _ in range(2)]

    assert passes[0] == passes[1]
    assert [len(batch) for batch in passes[0]] == [4, 4, 1]
    assert [path for path, _ in data.broken] == ["test/bad.jpg"]


def test_a_photograph_that_may_not_be_read_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, 9)
    whole = Path.open

    def deny(path: Path, *args: str) -> object:
        if path.name == "3.png":
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path, *args)

    monkeypatch.setattr(Path, "open", deny)  # permissions do not bind root, who may run these tests

    assert list(open_data(tmp_path, max_broken=0.5).broken) == [("3.png", "permission denied")]


def test_too_many_broken_at_first_sight_are_refused_naming_five(tmp_path: Path) -> None:
    fill(tmp_path, 20)
    for i in range(7):
        (tmp_path / f"bad{i}.jpg").write_bytes(b"")

    with pytest.raises(InputError, match="7 of 27") as caught:
        open_data(tmp_path)

    assert [f"bad{i}.jpg" in caught.value.message for i in range(7)] == [True] * 5 + [False] * 2
    assert caught.value.hint


def test_too_many_broken_inside_are_refused_too(tmp_path: Path) -> None:
    fill(tmp_path / "train", 2)
    fill(tmp_path / "test", 4)
    for i in range(4):
        truncated(".png")(tmp_path / "test" / f"bad{i}.png")
    data = open_data(tmp_path, max_broken=0.2)

    with pytest.raises(InputError, match=r"3 of 10|4 of 10"):
        list(data.test.batches(2, AS_IS))


def test_a_folder_of_broken_photographs_only_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"")

    with pytest.raises(InputError, match="photographs"):
        open_data(tmp_path, max_broken=1)


def test_a_split_made_by_hand_notes_what_is_broken(tmp_path: Path) -> None:
    good, bad = save(tmp_path / "good.png"), tmp_path / "bad.png"
    split = Split("test", (Photo(bad, 0, "00"), Photo(good, 1, "01")), True)

    (batch,) = split.batches(4, AS_IS)

    assert batch.labels.tolist() == [1]
    assert list(split.broken) == [(bad.as_posix(), "no such file")]
    assert list(Broken()) == []


# --- every kind of photograph ---------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 255, 32, dtype=np.uint8), (8, 1))


def check_ramp(path: Path, tolerance: int = 0) -> None:
    image = read_photo(path)
    assert (image.mode, image.size) == ("RGB", (32, 8))
    difference = np.abs(np.asarray(image).astype(int) - RAMP[..., None])
    assert difference.max() <= tolerance


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [
        ("L", ".png", 0),
        ("L", ".jpg", 4),
        ("LA", ".png", 0),
        ("RGBA", ".png", 0),
        ("RGBA", ".webp", 8),
        ("CMYK", ".jpg", 4),
        ("CMYK", ".tif", 0),
        ("P", ".gif", 0),
        ("P", ".png", 0),
        ("RGB", ".bmp", 0),
        ("RGB", ".ppm", 0),
    ],
)
def test_every_mode_shows_the_same_ramp(tmp_path: Path, mode: str, suffix: str, tolerance: int) -> None:
    image = Image.fromarray(RAMP)
    path = tmp_path / f"ramp{suffix}"
    (image if mode == "P" else image.convert("RGB")).convert(mode).save(path)

    check_ramp(path, tolerance)


@pytest.mark.parametrize(("suffix", "order"), [(".png", "<u2"), (".tif", "<u2"), (".tif", ">u2")])
def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path, suffix: str, order: str) -> None:
    path = tmp_path / f"deep{suffix}"
    Image.fromarray((RAMP.astype(np.uint16) * 257).astype(order)).save(path)

    check_ramp(path)


def test_a_sixteen_bit_grey_map_is_scaled_and_not_refused(tmp_path: Path) -> None:
    """Turning a photograph upright must not make Pillow forget which format it came in."""
    grey = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
    (tmp_path / "deep.pgm").write_bytes(b"P5 8 8 65535\n" + grey.astype(">u2").tobytes())

    pixels = np.asarray(read_photo(tmp_path / "deep.pgm"))

    assert np.abs(pixels[..., 0].astype(int) - grey // 256).max() <= 1


def test_a_palette_with_its_own_transparency_keeps_its_colours(tmp_path: Path) -> None:
    image = Image.fromarray(RAMP).convert("P")
    image.save(tmp_path / "ramp.png", transparency=bytes(range(256)))

    check_ramp(tmp_path / "ramp.png")


def test_one_bit_is_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(RAMP > 127).save(tmp_path / "line.png")

    np.testing.assert_array_equal(np.unique(read_photo(tmp_path / "line.png")), [0, 255])


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif", ".mpo.jpg"])
def test_an_animation_shows_its_first_frame(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"moving{suffix}"
    first = Image.fromarray(RAMP).convert("RGB" if suffix == ".webp" else "L")
    options = {".webp": {"lossless": True}, ".mpo.jpg": {"format": "MPO"}}.get(suffix, {})
    first.save(path, save_all=True, append_images=[Image.new(first.mode, first.size)] * 2, **options)

    check_ramp(path, 4 if suffix == ".mpo.jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_seen_upright(tmp_path: Path, orientation: int) -> None:
    upright = Image.fromarray(RAMP).convert("RGB")
    # how a camera held that way stores it: the inverse of what the EXIF standard says to do
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = upright.transpose(turn[orientation]) if orientation in turn else upright
    stored.save(tmp_path / "turned.png", exif=exif)

    check_ramp(tmp_path / "turned.png")


def test_a_bomb_is_refused_where_pillow_was_told_to_let_it_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AT_SCAN["great bomb"](tmp_path / "bad.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)

    with pytest.raises(InputError, match="60000×60000 pixels"):
        read_photo(tmp_path / "bad.png")


def test_floating_point_pixels_are_refused(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tif")

    with pytest.raises(InputError, match="white is unknown"):
        read_photo(tmp_path / "float.tif")


@pytest.mark.parametrize("kind", [*AT_SCAN, *AT_DECODE])
def test_reading_one_broken_photograph_says_which_and_why(tmp_path: Path, kind: str) -> None:
    (AT_SCAN | AT_DECODE)[kind](tmp_path / "bad.jpg")

    with pytest.raises(InputError, match=r"bad\.jpg: .+"):
        read_photo(tmp_path / "bad.jpg")


def test_pillow_and_warnings_are_left_as_they_were(tmp_path: Path) -> None:
    fill(tmp_path, 9)
    AT_SCAN["bomb"](tmp_path / "bad.jpg")
    before = (Image.MAX_IMAGE_PIXELS, list(warnings.filters))

    data = open_data(tmp_path, max_broken=0.5)
    next(data.test.batches(1, AS_IS))

    assert (Image.MAX_IMAGE_PIXELS, list(warnings.filters)) == before


def test_photographs_with_odd_metadata_are_read_in_silence(tmp_path: Path) -> None:
    content = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\x40\0\0\0\x7f\0"
    Image.fromarray(RAMP).save(tmp_path / "odd.jpg", exif=content)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_ramp(tmp_path / "odd.jpg", 4)
