import dataclasses
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from penjing import toml
from penjing.errors import InputError
from penjing.preprocess import IMAGENET, Preprocess
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Normalize, Resize, ToTensor


def noise(height: int, width: int, mode: str = "RGB") -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(height * 1000 + width).integers(0, 256, shape, np.uint8))


def torchvision_pixels(table: Preprocess, image: Image.Image) -> np.ndarray:
    steps = []
    if table.resize is not None:
        steps.append(Resize(table.resize, InterpolationMode(table.interpolation), antialias=True))
    if table.crop is not None:
        steps.append(CenterCrop(table.crop))
    return Compose([*steps, ToTensor(), Normalize(table.mean, table.std)])(image).numpy()


sides = st.integers(1, 40)
pairs = st.tuples(sides, sides)
number = st.floats(-1e6, 1e6)
divisor = st.floats(1e-6, 1e6) | st.floats(-1e6, -1e-6)


@st.composite
def tables(draw: st.DrawFn) -> Preprocess:
    channels = draw(st.sampled_from(sorted(IMAGENET)))
    resize = draw(st.none() | sides | pairs)
    crop = draw(st.none() | sides | pairs)
    if resize is not None and crop is not None:
        least = resize if isinstance(resize, int) else min(resize)
        crop = min(crop, least) if isinstance(crop, int) else (min(crop[0], least), min(crop[1], least))
    values = {
        name: tuple(draw(st.lists(of, min_size=len(channels), max_size=len(channels))))
        for name, of in (("mean", number), ("std", divisor))
    }
    interpolation = draw(st.sampled_from(["bilinear", "bicubic", "nearest"]))
    return Preprocess(resize, crop, interpolation, draw(divisor), channels=channels, **values)


@settings(deadline=None)  # the machine may be busy
@given(tables())
def test_a_table_comes_back_from_json_and_toml_as_it_went(table: Preprocess) -> None:
    assert Preprocess.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    assert Preprocess.from_dict(toml.loads(table.to_toml())) == table


@settings(deadline=None)  # the machine may be busy
@given(tables(), st.integers(1, 50), st.integers(1, 50))
def test_the_result_equals_torchvisions(table: Preprocess, height: int, width: int) -> None:
    table = dataclasses.replace(table, channels="RGB", mean=(), std=(), scale=1 / 255)
    image = noise(height, width)

    result = table(image)

    grey_level = 1 / 255 / min(table.std)
    np.testing.assert_allclose(result, torchvision_pixels(table, image), rtol=0, atol=grey_level / 100)
    assert (result.dtype, result.flags.c_contiguous) == (np.float32, True)
    assert table.size in (None, result.shape[1:])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("resize", [176, (176, 160), None])
@pytest.mark.parametrize("crop", [159, (32, 160), None])
@pytest.mark.parametrize("shape", [(184, 231), (231, 184), (40, 300)])
def test_a_photograph_is_prepared_as_torchvision_does(interpolation, resize, crop, shape) -> None:
    table = Preprocess(resize, crop, interpolation)
    image = noise(*shape)

    np.testing.assert_allclose(table(image), torchvision_pixels(table, image), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("have", "want"), [(4, 7), (5, 8), (7, 4), (8, 5), (1, 2), (3, 3)])
def test_a_crop_larger_than_the_image_has_torchvisions_black_borders(have: int, want: int) -> None:
    table = Preprocess(crop=(want, 6))
    image = noise(have, 9)

    np.testing.assert_allclose(table(image), torchvision_pixels(table, image), rtol=0, atol=1e-5)


def test_a_call_is_pixels_then_normalise() -> None:
    table = Preprocess(resize=9, crop=(8, 6))
    images = [noise(20, 30), noise(31, 12)]

    pixels = [table.pixels(image) for image in images]
    batch = table.normalise(np.stack(pixels))

    assert [(array.shape, array.dtype) for array in pixels] == [((8, 6, 3), np.uint8)] * 2
    np.testing.assert_array_equal(batch, np.stack([table(image) for image in images]))
    assert batch.flags.c_contiguous


def test_bgr_turns_the_channels_and_mean_and_std_follow_them() -> None:
    image = noise(5, 6)

    bgr, rgb = Preprocess(channels="BGR"), Preprocess()

    assert bgr.mean == rgb.mean[::-1]
    np.testing.assert_array_equal(bgr(image), rgb(image)[::-1])


def test_grey_has_one_channel_and_one_mean() -> None:
    table = Preprocess.from_dict({"channels": "L", "scale": 1, "crop": [2, 3]})

    result = table(Image.new("RGB", (4, 4), (100, 100, 100)))

    np.testing.assert_allclose(result, np.full((1, 2, 3), (100 - 0.449) / 0.226), rtol=1e-6)


def test_an_empty_table_is_imagenets() -> None:
    table = Preprocess.from_dict({})

    assert table == Preprocess()
    assert (table.mean, table.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (table.scale, table.channels, table.size) == (1 / 255, "RGB", None)


@pytest.mark.parametrize(
    ("resize", "crop", "size"),
    [(None, None, None), (9, None, None), (9, 8, (8, 8)), ((9, 7), None, (9, 7)), ((9, 7), (8, 6), (8, 6))],
)
def test_the_size_is_known_where_it_does_not_follow_the_image(resize, crop, size) -> None:
    assert Preprocess(resize, crop).size == size


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"rezise": 3}, "rezise"),
        ({"resize": "3"}, "resize"),
        ({"resize": True}, "resize"),
        ({"resize": 3.0}, "resize"),
        ({"resize": [3]}, "resize"),
        ({"resize": [3, 4, 5]}, "resize"),
        ({"resize": 0}, "resize"),
        ({"resize": -3}, "resize"),
        ({"crop": 8193}, "crop"),
        ({"crop": [1, 10**9]}, "crop"),
        ({"crop": 10, "resize": 9}, "crop"),
        ({"crop": [9, 12], "resize": [12, 9]}, "crop"),
        ({"interpolation": "lanczos"}, "interpolation"),
        ({"interpolation": 2}, "interpolation"),
        ({"scale": "1"}, "scale"),
        ({"scale": 0}, "scale"),
        ({"scale": float("nan")}, "scale"),
        ({"scale": 10**400}, "scale"),
        ({"mean": 0.5}, "mean"),
        ({"mean": []}, "mean"),
        ({"mean": [0.5]}, "mean"),
        ({"mean": [0.5, 0.5, True]}, "mean"),
        ({"mean": [0.5, 0.5, float("inf")]}, "mean"),
        ({"std": [1, 1, 0]}, "std"),
        ({"std": [1, 1, 1e-320]}, "std"),
        ({"std": [1, 1, 1], "channels": "L"}, "std"),
        ({"channels": "rgb"}, "channels"),
        ({"channels": ["R", "G", "B"]}, "channels"),
        ([], "table"),
    ],
)
def test_a_field_that_cannot_be_is_named(table, says: str) -> None:
    with pytest.raises(InputError, match=says):
        Preprocess.from_dict(table)


def test_a_mistyped_field_gets_a_hint() -> None:
    with pytest.raises(InputError) as caught:
        Preprocess.from_dict({"interpolaton": "nearest"})

    assert "interpolation" in caught.value.hint


def test_a_strip_is_refused_before_it_is_enlarged_beyond_memory() -> None:
    with pytest.raises(InputError, match="strip"):
        Preprocess(resize=256, crop=224)(Image.new("L", (5000, 1)))


def test_a_mark_of_byte_order_is_passed_over(tmp_path) -> None:
    path = tmp_path / "windows.toml"
    path.write_text("resize = [9, 7]", encoding="utf-8-sig")
    assert Preprocess.from_toml(path) == Preprocess(resize=(9, 7))


def test_a_file_is_read_and_named_where_it_is_at_fault(tmp_path) -> None:
    good, wrong, bad, long, absent = (tmp_path / f"{name}.toml" for name in "abcde")
    good.write_text(Preprocess(resize=(9, 7)).to_toml(), encoding="utf-8")
    wrong.write_text("crop = 'big'")
    bad.write_bytes(b"crop = \xff")
    long.write_text("#" * 100_000)

    assert Preprocess.from_toml(good) == Preprocess(resize=(9, 7))
    for path in (wrong, bad, long, absent, tmp_path):
        with pytest.raises(InputError) as caught:
            Preprocess.from_toml(path)
        assert str(path) in caught.value.message
