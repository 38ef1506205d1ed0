#!/usr/bin/env python3
# This one file goes to boards with Python 3.6, whose types, paths and calls it therefore keeps to:
# ruff: noqa: B905, UP006, UP035, UP045, PTH112, PTH114, PTH116, PTH118, PTH120, PTH123, PTH208
"""Run the model that lies beside this file: photographs in, answers out.

    python3 runner.py photo.jpg folder/ ...   [--top 5] [--json]
    python3 runner.py --bench                 how fast it is on this machine; beside another bundle with --beside
    python3 runner.py --check                 whether the files are as they were made, and so are the answers
    python3 runner.py --build                 ready it for this machine: what TensorRT does once, taking minutes
    python3 runner.py --camera 0              a camera or a stream, where OpenCV is installed

It needs Python 3.6 or later, numpy, Pillow and what its bundle runs in, onnxruntime or TensorRT, and never a
network. Exit codes: 0 all is well; 1 an image could not be read; 2 the command line is wrong; 3 the bundle, or
an answer, is not as it was made; 4 this machine cannot run it.
"""

import argparse
import hashlib
import json
import math
import os
import platform
import re
import stat
import struct
import sys
import time
import warnings
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

SCHEMA = 1
FAILED_IMAGE, BAD_BUNDLE, BAD_MACHINE = 1, 3, 4
MAX_MANIFEST, MAX_FILES, MAX_FILE = 4 * 10**6, 100, 2**31
MAX_ELEMENTS, MAX_SIDE = 2**27, 8192
#: of a photograph, and of what a short side makes of a strip
MAX_PIXELS, MAX_STRIP = 2**30 // 4 // 3, 2**26
#: Pillow knows many more, and some of them start other programs; MPO is what many telephones call a JPEG
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
#: Pillow's numbers, which outlast its names for them
FILTERS = {"nearest": 0, "bilinear": 2, "bicubic": 3}
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
#: the last onnxruntime for Pythons that newer ones left behind
LAST_FOR = {(3, 6): "1.10.0", (3, 7): "1.14.1", (3, 8): "1.19.2", (3, 9): "1.19.2", (3, 10): "1.23.2"}
#: in ONNX, what says that a weight lies in another file; onnxruntime of old follows it anywhere
ELSEWHERE = re.compile(rb"j[\x80-\xff]*[\x00-\x7f]\n\x08location\x12")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*\Z")


class RunnerError(Exception):
    """Why nothing can be done, in one line; `code` is the exit code."""

    def __init__(self, message: str, code: int = BAD_BUNDLE) -> None:
        super().__init__(message)
        self.code = code


class ImageError(Exception):
    """Why one image cannot be read; the others can."""


# -- the bundle ---------------------------------------------------------------------------------------------


class Bundle:
    """A bundle, all of whose files were compared with its manifest as they were read; nothing is read again."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        text = read_inside(folder, "manifest.json", MAX_MANIFEST)
        self.manifest = check_manifest(parse(text))
        self._contents: Dict[str, bytes] = {}
        for name, facts in sorted(self.manifest["files"].items()):
            data = read_inside(folder, name, facts["size"])
            if len(data) != facts["size"] or hashlib.sha256(data).hexdigest() != facts["sha256"]:
                raise RunnerError(f"{name} is not as it was made: copy the bundle again.")
            self._contents[name] = data

    def take(self, name: str) -> bytes:
        """Return the content of a file, once."""
        return self._contents.pop(name)

    def array(self, name: str) -> Any:
        """Return the array in a .npy file; RunnerError where it holds anything but plain numbers."""
        import io

        import numpy as np

        data = self.take(name)
        file = io.BytesIO(data)
        try:
            np.lib.format.read_magic(file)
            shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
        except (ValueError, SyntaxError, TypeError) as error:
            raise RunnerError(f"{name} is not an array: {first_line(error)}.") from error
        count = elements(shape)
        plain_numbers = dtype.kind in "biuf" and not fortran and min(shape, default=1) >= 0
        if not plain_numbers or count * dtype.itemsize != len(data) - file.tell():
            raise RunnerError(f"{name} is not a plain array of the size it claims.")
        return np.frombuffer(data, dtype, count, file.tell()).reshape(shape)


def read_inside(folder: str, name: str, most: int) -> bytes:
    """Return a file's content; RunnerError where it is a link, not a regular file, or larger than `most`."""
    path = folder
    for part in name.split("/"):
        path = os.path.join(path, part)
        need(not os.path.islink(path), f"{name}: it is a link, which no bundle holds")
    flags = os.O_RDONLY | sum(getattr(os, flag, 0) for flag in ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY"))
    try:
        with open(path, "rb", opener=lambda path, _: os.open(path, flags)) as file:
            facts = os.fstat(file.fileno())
            need(stat.S_ISREG(facts.st_mode), f"{name}: it is not a regular file")
            need(
                facts.st_size <= most,
                f"{name}: its {facts.st_size} bytes are more than the {most} it may have",
            )
            return file.read(most + 1)
    except OSError as error:
        raise RunnerError(f"{name} in {folder} cannot be read: {error.strerror or error}.") from error


def parse(text: bytes) -> Any:
    """Return the JSON in `text`; RunnerError where it is none, or holds numbers too long to be true."""

    def whole(digits: str) -> int:
        return int(digits[:20])  # longer ones are out of every bound all the same, and slow to read

    def constant(word: str) -> float:
        raise ValueError("the number " + word)

    try:
        return json.loads(text.decode("utf-8"), parse_int=whole, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        raise RunnerError(f"manifest.json is not JSON: {first_line(error)}.") from error


def need(holds: Any, what: str) -> None:
    """Raise RunnerError where the bundle is not as it must be."""
    if not holds:
        raise RunnerError(f"This is no sound bundle: {what}.")


def digest(manifest: Dict[str, Any]) -> str:
    """Return the SHA-256 of a manifest without its own field "digest"."""
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    try:
        text = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    except RecursionError as error:
        raise RunnerError("manifest.json is nested too deep.") from error
    return hashlib.sha256(text.encode()).hexdigest()


def check_manifest(manifest: Any) -> Dict[str, Any]:
    """Return the manifest; RunnerError naming the first field that this runner cannot go by."""
    need(isinstance(manifest, dict), "manifest.json is not an object")
    schema = manifest.get("schema")
    if type(schema) is int and schema > SCHEMA:
        raise RunnerError(
            f"The bundle has schema {schema}; this runner reads up to {SCHEMA}: use the bundle's own."
        )
    wrong(type(schema) is int and schema == SCHEMA, "schema")
    need(manifest.get("digest") == digest(manifest), "manifest.json was changed after it was made")
    wrong(printable(manifest.get("task")), "task")
    labels = manifest.get("labels")
    wrong(isinstance(labels, list) and len(labels) <= 10**5 and all(map(printable, labels)), "labels")
    check_files(manifest.get("files"), manifest.get("model"), manifest.get("golden"))
    check_tensors(manifest)
    check_target(manifest.get("device"), manifest.get("runtime"))
    check_build(manifest["runtime"].get("build", {}), manifest)
    if manifest.get("preprocess") is not None:
        check_preprocess(manifest["preprocess"], manifest["inputs"][0]["shape"][2:])
    return manifest  # type: ignore[no-any-return]  # need() saw that it is a dict


def wrong(holds: Any, field: str) -> None:
    """Raise RunnerError where a field is not as docs/bundle.md says."""
    need(holds, f"its manifest.json has a wrong field {field}")


def check_files(files: Any, model: Any, golden: Any) -> None:
    """Check that files stay inside the folder, and that those the manifest speaks of are among them."""
    wrong(isinstance(files, dict) and 0 < len(files) <= MAX_FILES, "files")
    for name, facts in files.items():
        need(NAME.match(name), f"{name[:80]!a} leads out of its folder")
        wrong(isinstance(facts, dict) and whole_number(facts.get("size"), 0, MAX_FILE), f"files.{name}.size")
        wrong(isinstance(facts.get("sha256"), str) and len(facts["sha256"]) == 64, f"files.{name}.sha256")
    wrong(isinstance(model, dict), "model")
    wrong(isinstance(golden, dict) and isinstance(golden.get("outputs"), list), "golden.outputs")
    spoken_of = [model.get("file"), golden.get("input"), *golden["outputs"]]
    wrong(all(isinstance(name, str) and name in files for name in spoken_of), "model.file or golden")
    wrong(len(set(spoken_of)) == len(spoken_of), "golden.outputs")
    wrong(number(golden.get("tolerance"), 0, 1), "golden.tolerance")


def check_tensors(manifest: Dict[str, Any]) -> None:
    """Check names, shapes and dtypes of inputs and outputs."""
    for key in ("inputs", "outputs"):
        tensors = manifest.get(key)
        wrong(isinstance(tensors, list) and 0 < len(tensors) <= MAX_FILES, key)
        for tensor in manifest[key]:
            wrong(isinstance(tensor, dict) and isinstance(tensor.get("name"), str), key + ".name")
            wrong(isinstance(tensor.get("dtype"), str), key + ".dtype")
            shape = tensor.get("shape")
            wrong(isinstance(shape, list) and len(shape) <= 16, key + ".shape")
            wrong(all(side is None or whole_number(side, 0, MAX_ELEMENTS) for side in shape), key + ".shape")
            wrong(elements(side or 1 for side in shape) <= MAX_ELEMENTS, key + ".shape")
    wrong(len(manifest["outputs"]) == len(manifest["golden"]["outputs"]), "golden.outputs")
    first = manifest["inputs"][0]
    wrong(len(manifest["inputs"]) == 1 and len(first["shape"]) == 4 and 0 not in first["shape"], "inputs")
    wrong(first["dtype"] in ("float32", "float16"), "inputs.dtype")


def check_target(device: Any, runtime: Any) -> None:
    """Check what the manifest says of the device and of what runs the model there."""
    wrong(isinstance(device, dict) and printable(device.get("title")), "device.title")
    wrong(printable(device.get("arch")), "device.arch")
    wrong(isinstance(device.get("isa"), list) and all(map(printable, device["isa"])), "device.isa")
    wrong(isinstance(runtime, dict) and printable(runtime.get("name")), "runtime.name")
    minimum = runtime.get("minimum")
    wrong(isinstance(minimum, str) and re.match(r"(\d{1,4}(\.\d{1,4})*)?\Z", minimum), "runtime.minimum")
    wrong(whole_number(runtime.get("threads"), 1, 1024), "runtime.threads")
    known = ", ".join(RUNTIMES)
    need(runtime["name"] in RUNTIMES, f"it is for {runtime['name']}, and this runner knows {known}")


def check_build(build: Any, manifest: Dict[str, Any]) -> None:
    """Check what the manifest says of how an engine is built."""
    wrong(isinstance(build, dict), "runtime.build")
    precisions = build.get("precisions", [])
    known = isinstance(precisions, list) and all(item in ("fp16", "bf16", "int8") for item in precisions)
    wrong(known, "runtime.build.precisions")
    for key, low, high in (("dla_core", 0, 15), ("workspace_mb", 1, 2**20), ("optimization_level", 0, 5)):
        wrong(build.get(key) is None or whole_number(build[key], low, high), "runtime.build." + key)
    for key in ("strongly_typed", "gpu_fallback"):
        wrong(type(build.get(key, False)) is bool, "runtime.build." + key)
    cache, golden = build.get("calibration"), manifest["golden"]
    free = cache not in [manifest["model"]["file"], golden["input"], *golden["outputs"]]
    known = isinstance(cache, str) and cache in manifest["files"] and free
    wrong(cache is None or known, "runtime.build.calibration")


def check_preprocess(table: Any, sides: Sequence[Optional[int]] = (None, None)) -> None:
    """Check the table of how an image becomes an input of this height and width."""
    wrong(isinstance(table, dict), "preprocess")
    channels = table.get("channels")
    wrong(channels in ("RGB", "BGR", "L"), "preprocess.channels")
    wrong(table.get("interpolation") in list(FILTERS), "preprocess.interpolation")
    for key in ("resize", "crop"):
        size = table.get(key)
        two = size if isinstance(size, list) and len(size) == 2 else [size, size]
        wrong(size is None or all(whole_number(side, 1, MAX_SIDE) for side in two), "preprocess." + key)
    size = pair(table["crop"]) if table.get("crop") is not None else table.get("resize")
    if isinstance(size, list):
        wrong(all(have in (None, side) for have, side in zip(sides, size)), "preprocess: its size")
    wrong(divisor(table.get("scale")), "preprocess.scale")
    for key in ("mean", "std"):
        values = table.get(key)
        wrong(isinstance(values, list) and len(values) == len(channels), "preprocess." + key)
        wrong(all(number(value, -1e9, 1e9) for value in values), "preprocess." + key)
    wrong(all(map(divisor, table["std"])), "preprocess.std")


def whole_number(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def number(value: Any, low: float, high: float) -> bool:
    return type(value) in (int, float) and low <= value <= high


def divisor(value: Any) -> bool:
    """Tell a number that is not 0, as float32 neither."""
    return number(value, -1e9, 1e9) and abs(value) > 1e-30


def printable(value: Any) -> bool:
    """Tell text that does nothing to a terminal but stand there."""
    return isinstance(value, str) and len(value) <= 1000 and value.isprintable()


def elements(shape: Iterable[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- from image to input ------------------------------------------------------------------------------------


def decode(path: str) -> Any:
    """Return the photograph as an upright RGB image; ImageError with the reason where it cannot be read."""
    try:
        empty = os.path.isdir(path) and os.listdir(path) is not None  # what may not be looked into says so
        check_image(not empty, "no photograph is in this folder")
        check_image(stat.S_ISREG(os.stat(path).st_mode), "not a regular file")  # a pipe could block for ever
        with open(path, "rb") as file:
            image = open_image(file)
            image.load()
            return as_rgb(image)
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them trip over
        system = error.strerror if isinstance(error, OSError) else None
        unknown = "not an image that can be read" if "cannot identify" in str(error) else ""
        raise ImageError(unknown or system or first_line(error)) from error


def open_image(file: Any) -> Any:
    """Return an image of a format that photographs have, of a size that fits memory; its pixels are not read."""
    from PIL import Image, __version__

    # Pillow below 8 cannot be told which formats to try, and 8 stumbles over some
    only: Any = {"formats": FORMATS} if int(__version__.split(".")[0]) >= 9 else {}
    image = Image.open(file, **only)
    check_image(image.format in FORMATS or image.format == "MPO", "not an image that can be read")
    check_image(image.width * image.height <= MAX_PIXELS, f"{image.width}×{image.height} pixels, too many")
    return image


def check_image(holds: bool, reason: str) -> None:
    if not holds:
        raise ImageError(reason)


def as_rgb(image: Any) -> Any:
    """Return an image upright, as RGB without alpha; 16 bits keep their upper 8."""
    import numpy as np
    from PIL import Image

    form, mode = image.format, image.mode
    image = upright(image)
    if mode.startswith("I") and (mode != "I" or form in ("PNG", "PPM")):
        # older Pillow reads a PNG of 16 bits as mode I; converting would clip all above 255 to white
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    elif mode in ("I", "F"):
        raise ImageError(f"pixels of 32 bits (mode {mode}), whose white is unknown")
    elif mode == "P":
        image = image.convert("RGBA")  # the way around palettes that hold their own transparency
    return image.convert("RGB")


def upright(image: Any) -> Any:
    """Turn an image, whose pixels were read, as its EXIF says."""
    from PIL import ImageOps, __version__

    version = tuple(map(int, __version__.split(".")[:2]))
    if image.format == "TIFF" and version < (10, 0):
        if version >= (6, 2):
            return image  # reading has turned it, but not told so in its EXIF
        tags: Any = image.tag_v2
    elif version >= (6, 0):
        return ImageOps.exif_transpose(image)
    else:
        tags = getattr(image, "_getexif", dict)() or {}
    turn = UPRIGHT.get(tags.get(0x0112, 1))
    return image if turn is None else image.transpose(turn)


def pixels(image: Any, table: Dict[str, Any]) -> Any:
    """Return an RGB image resized and cropped as uint8 HWC, its channels in the order of the model's."""
    import numpy as np

    channels = table["channels"]
    image = image.convert("L" if channels == "L" else "RGB")
    if table.get("resize") is not None:
        image = image.resize(resized(image.size, table["resize"]), FILTERS[table["interpolation"]])
    if table.get("crop") is not None:
        height, width = pair(table["crop"])
        top, left = margin(image.height, height), margin(image.width, width)
        image = image.crop((left, top, left + width, top + height))
    array = np.asarray(image, dtype=np.uint8).reshape(image.height, image.width, len(channels))
    return np.ascontiguousarray(array[..., ::-1] if channels == "BGR" else array)


def resized(size: Tuple[int, int], resize: Any) -> Tuple[int, int]:
    """Return the width and height that an image of this width and height is brought to."""
    if isinstance(resize, list):
        return resize[1], resize[0]
    width, height = size
    longer = int(resize * max(size) / min(size))
    strip = f"{width}×{height} pixels, too long a strip for a short side of {resize}"
    check_image(resize * longer <= MAX_STRIP, strip)
    return (longer, resize) if height <= width else (resize, longer)


def margin(have: int, want: int) -> int:
    """Return where a centred window begins; negative where it is wider, and Pillow fills with black."""
    return round((have - want) / 2) if have >= want else -((want - have) // 2)


def pair(sides: Any) -> Any:
    return sides if isinstance(sides, list) else [sides, sides]


def normalise(batch: Any, table: Dict[str, Any]) -> Any:
    """Return uint8 NHWC as float32 NCHW: (x · scale - mean) / std."""
    import numpy as np

    mean, std = (np.array(table[key], np.float32).reshape(-1, 1, 1) for key in ("mean", "std"))
    result = np.ascontiguousarray(batch.transpose(0, 3, 1, 2), dtype=np.float32)
    result *= np.float32(table["scale"])
    result -= mean
    result /= std
    return result


# -- the runtime --------------------------------------------------------------------------------------------


class OnnxRuntime:
    """The model in ONNX Runtime, on the CPU."""

    name = "onnxruntime"

    def __init__(
        self, model: bytes, manifest: Dict[str, Any], threads: int, entries: Iterable[Tuple[str, str]] = ()
    ) -> None:
        need(not ELSEWHERE.search(model), "its model keeps weights in other files")
        onnxruntime = module("onnxruntime", manifest["runtime"]["minimum"])
        self.version: str = onnxruntime.__version__
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = 4
        # as when it was timed on the workstation: threads do not spin on after a run
        for key, value in [("session.force_spinning_stop", "1"), *entries]:
            options.add_session_config_entry(key, value)
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exceptions have no common base
            raise RunnerError(self._cannot_load(manifest, error), BAD_MACHINE) from error
        self._input = manifest["inputs"][0]["name"]
        remark = older(self.version, manifest["runtime"]["minimum"])
        self.notes = [f"onnxruntime {self.version}{remark}: it may be slow."] if remark else []
        self.facts: Dict[str, Any] = {}

    def _cannot_load(self, manifest: Dict[str, Any], error: Exception) -> str:
        model, remark = manifest["model"], older(self.version, manifest["runtime"]["minimum"])
        if remark:
            here, wanted = sys.version_info[:2], python_for(manifest["runtime"]["minimum"])
            why = remark + (f", and that Python {wanted[0]}.{wanted[1]} or later." if here < wanted else ".")
        else:
            why = f": {first_line(error)[:300]}"
        written = f"of opset {model.get('opset')}, IR version {model.get('ir')}"
        return f"onnxruntime {self.version} cannot load the model, {written}{why}"

    def __call__(self, batch: Any) -> List[Any]:
        """Run one batch, NCHW."""
        try:
            return list(self._session.run(None, {self._input: batch}))
        except Exception as error:  # as above
            raise RunnerError("The model failed: " + first_line(error)[:300], BAD_MACHINE) from error


def onnxruntime_runtime(bundle: Bundle, threads: int, batch: int, any_machine: bool) -> Any:
    """Return the model in ONNX Runtime."""
    return OnnxRuntime(bundle.take(bundle.manifest["model"]["file"]), bundle.manifest, threads)


#: what can run a bundle, by the name in its manifest; in bundles for TensorRT the second part of this file adds it
RUNTIMES: Dict[str, Callable[..., Any]] = {"onnxruntime": onnxruntime_runtime}


def require(runtime: Dict[str, Any]) -> None:
    """Raise RunnerError where packages are absent, naming all of them at once."""
    import importlib.util

    names = ["numpy", "PIL"] + (["onnxruntime"] if runtime["name"] == "onnxruntime" else [])
    absent = [name for name in names if importlib.util.find_spec(name) is None]
    if absent:
        are = "is" if len(absent) == 1 else "are"
        how = install_here(absent, runtime["minimum"])
        raise RunnerError(f"{' and '.join(absent)} {are} not installed. {how}", BAD_MACHINE)
    for name in ("numpy", "PIL"):
        module(name)


def module(name: str, minimum: str = "") -> Any:
    """Import a package; RunnerError telling how to install it where that fails."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        missing = getattr(error, "name", "") == name
        why = f"{name} is not installed. " if missing else f"{name} does not load: {first_line(error)}. "
        raise RunnerError(why + install_here([name], minimum), BAD_MACHINE) from error


def install_here(names: Sequence[str], minimum: str) -> str:
    bits = struct.calcsize("P") * 8
    return how_to_install(names, minimum, sys.version_info[:2], platform.machine(), bits)


def how_to_install(names: Sequence[str], minimum: str, python: Tuple[int, ...], arch: str, bits: int) -> str:
    """Return what to type to install packages for a Python of this version, on such a machine."""
    wanted, remark = ["pillow" if name == "PIL" else name for name in names], ""
    if "onnxruntime" in names:
        if bits != 64 or arch.lower() not in ("x86_64", "amd64", "aarch64", "arm64"):
            return f"There is no onnxruntime for a {bits}-bit Python on {arch}: install a 64-bit system."
        last = LAST_FOR.get((python[0], python[1]), "")
        wanted.remove("onnxruntime")
        wanted.append("onnxruntime" + (f"=={last}" if last else f">={minimum}" if minimum else ""))
        remark = older(last, minimum) if last else ""
    pip = (sys.executable or "python3") + " -m pip install "
    first = f"{pip}--upgrade pip, then " if python < (3, 7) else ""  # its own knows no wheels of today
    return "Type: " + first + pip + " ".join(f'"{name}"' for name in wanted) + remark


def python_for(minimum: str) -> Tuple[int, int]:
    """Return the oldest Python that an onnxruntime of this version, or a later one, is made for."""
    return min((python for python, last in LAST_FOR.items() if not older(last, minimum)), default=(3, 11))


def older(version: str, minimum: str) -> str:
    """Return a remark where `version` is older than `minimum`, "" where it is not."""
    have, want = ([int(part) for part in re.findall(r"\d+", text)[:2]] for text in (version, minimum))
    return f"; the bundle asks for {minimum} or later" if have < want else ""


def check_machine(device: Dict[str, Any], arch: str, cpuinfo: str) -> None:
    """Raise RunnerError where this machine's arithmetic is not the device's: its answers could be others."""
    arch = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(arch.lower(), arch.lower())
    # without these instructions, by Linux's names, sums of 8-bit products can overflow
    needs_vnni = bool({"avx512_vnni", "avx_vnni", "amx"} & set(device["isa"])) and "flags" in cpuinfo
    lacks_vnni = not re.search(r"\b(avx512_vnni|avx_vnni|amx_int8)\b", cpuinfo)
    if arch != device["arch"]:
        why = f"a machine of architecture {device['arch']}, and this is {arch}"
    elif needs_vnni and lacks_vnni:
        why = "a CPU with VNNI instructions, which this one lacks"
    else:
        return
    raise RunnerError(
        f"The bundle is for {device['title']}, {why}. With --any-machine it runs all the same, at another speed "
        "and maybe with other answers.",
        BAD_MACHINE,
    )


# -- answers ------------------------------------------------------------------------------------------------


class Model:
    """A bundle ready to run. `notes` are remarks on how it runs here."""

    def __init__(self, bundle: Bundle, threads: int = 0, batch: int = 0, any_machine: bool = False) -> None:
        self.manifest = bundle.manifest
        if not any_machine:
            check_machine(self.manifest["device"], platform.machine(), read_text("/proc/cpuinfo"))
        runtime, shape = self.manifest["runtime"], self.manifest["inputs"][0]["shape"]
        self.batch = shape[0] or batch or 1
        if batch and batch != self.batch:
            raise RunnerError(f"The model takes batches of {self.batch}, not of {batch}.", 2)
        self.threads = threads or min(runtime["threads"], cores())
        self.session = RUNTIMES[runtime["name"]](bundle, self.threads, self.batch, any_machine)
        self.notes: List[str] = self.session.notes

    def inputs(self, batch: Any) -> Any:
        """Return what goes into the model: uint8 NHWC is normalised, NCHW of floats is taken as it is."""
        need(batch.ndim == 4 and len(batch), f"its recorded input has the shape {list(batch.shape)}")
        if batch.dtype == "uint8":
            need(batch.shape[3] == len(self.table()["channels"]), "its recorded input has other channels")
            batch = normalise(batch, self.table())
        return batch.astype(self.manifest["inputs"][0]["dtype"])

    def table(self) -> Dict[str, Any]:
        """Return the preprocessing; RunnerError where the bundle was made without."""
        if self.manifest.get("preprocess") is None:
            raise RunnerError(
                "How photographs go in was not known when this bundle was made: use --preprocess then."
            )
        return self.manifest["preprocess"]  # type: ignore[no-any-return]  # check_manifest saw to it

    def outputs(self, batch: Any) -> List[List[Any]]:
        """Return the outputs for each item of a batch of any size."""
        return each(self.session, self.inputs(batch), self.batch, self.manifest["inputs"][0]["shape"][0])

    def answer(self, images: Iterable[Tuple[str, Any]], top: int) -> Iterator[Dict[str, Any]]:
        """Yield an answer for each image, given as its name and a path or an RGB image; the order is kept."""
        import numpy as np

        def flush() -> Iterator[Dict[str, Any]]:
            sound = [array for _, array in waiting if not isinstance(array, str)]
            results = iter(self.outputs(np.stack(sound)) if sound else [])
            for name, array in waiting:
                known = {"error": array} if isinstance(array, str) else self.describe(next(results), top)
                yield dict(known, image=name)
            del waiting[:]

        waiting: List[Tuple[str, Any]] = []
        shape = None
        for name, image in images:
            try:
                array = pixels(decode(image) if isinstance(image, str) else image, self.table())
            except ImageError as error:
                array = str(error)
            if not isinstance(array, str):
                if array.shape != shape:  # only images of one size go into one batch
                    for found in flush():
                        yield found
                shape = array.shape
            waiting.append((name, array))
            if len(waiting) >= self.batch:
                for found in flush():
                    yield found
        for found in flush():
            yield found

    def describe(self, outputs: List[Any], top: int) -> Dict[str, Any]:
        """Return one image's answer: the first classes, or what range each output has; and the outputs."""
        if self.manifest["task"] != "classification":
            names = [tensor["name"] for tensor in self.manifest["outputs"]]
            ranges = [summary(name, output) for name, output in zip(names, outputs)]
            return {"ranges": ranges, "outputs": outputs}
        shares, labels = probabilities(outputs[0].reshape(-1)), dict(enumerate(self.manifest["labels"]))
        if shares is None:
            return {"error": "the model's scores are no numbers", "outputs": outputs}
        classes = [
            {"class": i, "label": labels.get(i, f"class {i}"), "share": float(shares[i])}
            for i in map(int, (-shares).argsort(kind="mergesort")[:top])
        ]
        return {"top": classes, "outputs": outputs}


def each(
    session: Callable[[Any], List[Any]], inputs: Any, batch: int, fixed: Optional[int]
) -> List[List[Any]]:
    """Run inputs of any number in batches; return the outputs for each, as arrays whose first side is 1.

    Where the model takes a fixed number at a time, the last batch is filled up with copies.
    """
    import numpy as np

    found: List[List[Any]] = []
    for start in range(0, len(inputs), batch):
        part = inputs[start : start + batch]
        count = len(part)
        if fixed and count < fixed:
            part = np.concatenate([part, *([part[-1:]] * (fixed - count))])
        results = [np.atleast_1d(result) for result in session(part)]
        if len(part) == 1:
            found.append(results)
        elif all(len(result) == len(part) for result in results):
            found.extend([result[i : i + 1] for result in results] for i in range(count))
        else:
            raise RunnerError("The outputs cannot be told apart by image: leave out --batch.", 2)
    return found


def probabilities(scores: Any) -> Any:
    """Return scores as shares of 1: as they are where they already are, else their softmax; None of NaN."""
    import numpy as np

    scores = scores.astype(np.float64)
    if not scores.size or not np.isfinite(scores.max()):
        return None
    if scores.min() >= 0 and abs(scores.sum() - 1) < 1e-3:
        return scores
    powers = np.exp(scores - scores.max())
    return powers / powers.sum()


def summary(name: str, output: Any) -> Dict[str, Any]:
    values = output if output.size else output.dtype.type(0)  # a detector may find nothing
    facts = {"min": float(values.min()), "max": float(values.max()), "mean": float(values.mean())}
    told = {key: value if math.isfinite(value) else None for key, value in facts.items()}  # JSON has no NaN
    return dict(told, name=name, shape=list(output.shape))


# -- checks and times ---------------------------------------------------------------------------------------


def distance(found: Any, wanted: Any) -> Optional[float]:
    """Return how far outputs are apart: the largest over items of |a - b| / |b|; None where they do not compare."""
    import numpy as np

    if found.shape != wanted.shape:
        return None
    found, wanted = (array.reshape(len(array), -1).astype(np.float64) for array in (found, wanted))
    size = np.sqrt((wanted**2).sum(axis=1))
    apart = np.sqrt(((found - wanted) ** 2).sum(axis=1)) / np.where(size > 0, size, 1)
    worst = float(apart.max()) if len(apart) else 0.0
    return worst if math.isfinite(worst) else None


def check(bundle: Bundle, model: Model) -> Dict[str, Any]:
    """Compare the model's answers with those that were recorded; the files were compared when they were read."""
    import numpy as np

    golden = bundle.manifest["golden"]
    wanted = [bundle.array(name) for name in golden["outputs"]]
    found = [np.concatenate(parts) for parts in zip(*model.outputs(bundle.array(golden["input"])))]
    apart = [distance(a, b) for a, b in zip(found, wanted)]
    near = [value is not None and value <= golden["tolerance"] for value in apart]
    names = [tensor["name"] for tensor in bundle.manifest["outputs"]]
    return {
        "ok": len(found) == len(wanted) and all(near),
        "files": len(bundle.manifest["files"]),
        "distance": dict(zip(names, apart)),  # None: they cannot be compared
        "tolerance": golden["tolerance"],
        "runtime": model.session.name,
        "version": model.session.version,
    }


def bench(bundle: Bundle, model: Model, seconds: float, beside: str = "") -> Dict[str, Any]:
    """Time the model alone, warm, on the recorded input; image decoding is not part of it.

    With `beside`, the folder of another bundle, both are timed in turn, and how many times as fast this one is.
    """
    batch = recorded(bundle, model)
    other = neighbour(beside, model) if beside else None
    before = machine()
    if other:
        result = in_turn(model, batch, *other, seconds=seconds)
    elif hasattr(model.session, "bench"):  # a program of the runtime's own does the timing
        result = model.session.bench(seconds)
    else:
        run(model.session, batch, min(1.0, seconds), 5)
        result = dict(statistics(run(model.session, batch, seconds, 10), model.batch), by="runner.py")
    return dict(
        result,
        batch=model.batch,
        threads=model.threads,
        runtime=model.session.name,
        version=model.session.version,
        engine=model.session.facts,
        python=platform.python_version(),
        machine={"before": before, "after": machine()},
    )


def recorded(bundle: Bundle, model: Model) -> Any:
    """Return a batch of the recorded input, ready to go in."""
    import numpy as np

    golden = bundle.array(bundle.manifest["golden"]["input"])
    return model.inputs(np.concatenate([golden] * -(-model.batch // len(golden)))[: model.batch])


def neighbour(folder: str, model: Model) -> Tuple[Model, Any]:
    """Open another bundle, for this model's threads and batch; return its model and its recorded input."""
    bundle = Bundle(folder)
    shape = bundle.manifest["inputs"][0]["shape"]
    # that this machine is right for it was asked of the first
    other = Model(bundle, model.threads, 0 if shape[0] else model.batch, any_machine=True)
    if other.batch != model.batch:
        raise RunnerError(
            f"The bundles take batches of {model.batch} and {other.batch}: no two to compare.", 2
        )
    return other, recorded(bundle, other)


def in_turn(model: Model, batch: Any, other: Model, theirs: Any, seconds: float) -> Dict[str, Any]:
    """Time two models in rounds A B, A B, so that what slows the machine for a while slows both.

    The ratio is the median over rounds of the other's median over this one's, as is its interval.
    """
    if hasattr(model.session, "bench"):
        own, beside = (one.session.bench(max(1, seconds // 2)) for one in (model, other))
        ratio: Dict[str, Any] = {"speedup": beside["median_ms"] / own["median_ms"], "speedup_interval": None}
    else:
        pairs = ((model.session, batch), (other.session, theirs))
        one = sum(min(run(session, inputs, 0, 3)) for session, inputs in pairs)
        rounds = max(5, min(15, int(seconds / (5 * one))))
        blocks: List[List[List[float]]] = [[], []]
        for _ in range(rounds):
            for times, (session, inputs) in zip(blocks, pairs):
                run(session, inputs, 0, 2)  # warms caches and clocks after the other, and is not counted
                times.append(run(session, inputs, seconds / rounds / 2, 3))
        whole = [[time for times in block for time in times] for block in blocks]
        own, beside = (dict(statistics(times, model.batch), by="runner.py") for times in whole)
        middles = [[statistics(times, 1)["median_ms"] for times in block] for block in blocks]
        found = statistics([b / a for a, b in zip(*middles)], 1)
        low, high = found["median_interval_ms"]
        ratio = {"speedup": found["median_ms"] / 1e3, "speedup_interval": [low / 1e3, high / 1e3]}
    return dict(own, beside=dict(beside, engine=other.session.facts), **ratio)


def statistics(times: List[float], batch: int) -> Dict[str, Any]:
    """Return median, its 95 % interval (order statistics, normal approximation), 90th percentile and throughput."""
    times, count = sorted(times), len(times)
    median = (times[(count - 1) // 2] + times[count // 2]) / 2
    reach = 0.98 * math.sqrt(count)
    low, high = max(0, int(count / 2 - reach)), min(count - 1, math.ceil(count / 2 + reach))
    return {
        "median_ms": 1e3 * median,
        "median_interval_ms": [1e3 * times[low], 1e3 * times[high]],
        "p90_ms": 1e3 * times[-(-9 * count // 10) - 1],
        "throughput_per_s": batch / median,
        "runs": count,
    }


def run(session: Callable[[Any], Any], batch: Any, seconds: float, least: int) -> List[float]:
    """Run for so many seconds, and so many times at least; return the seconds of each run."""
    clock = time.perf_counter
    times: List[float] = []
    end = clock() + seconds
    while len(times) < least or clock() < end:
        start = clock()
        session(batch)
        times.append(clock() - start)
    return times


def machine() -> Dict[str, Any]:
    """Return what this machine tells of its clocks, heat and power; what it does not tell is left out."""
    cpus = "/sys/devices/system/cpu"
    facts: Dict[str, Any] = {"arch": platform.machine(), "cores": os.cpu_count(), "cpu": cpu_name()}
    facts["governor"] = " ".join(sorted(set(read_all(cpus, r"cpu\d+", "cpufreq/scaling_governor"))))
    facts["mhz"] = highest(read_all(cpus, r"cpu\d+", "cpufreq/scaling_cur_freq"), 1e3)
    facts["mhz_most"] = highest(read_all(cpus, r"cpu\d+", "cpufreq/cpuinfo_max_freq"), 1e3)
    facts["celsius"] = highest(read_all("/sys/class/thermal", r"thermal_zone\d+", "temp"), 1e3)
    throttles = read_all(cpus, r"cpu\d+", "thermal_throttle/core_throttle_count")
    facts["throttled_times"] = highest(throttles, 1)
    said = output_of("vcgencmd", "get_throttled")  # Raspberry Pi
    if re.search(r"0x[0-9a-fA-F]+", said):
        bits = int(said.split("0x", 1)[1].split()[0], 16)
        names = ("under-voltage", "clock capped", "throttled", "soft temperature limit")
        facts["throttled_now"] = [name for i, name in enumerate(names) if bits >> i & 1]
        facts["throttled_since_boot"] = [name for i, name in enumerate(names) if bits >> (16 + i) & 1]
    mode = re.search(r"NV Power Mode:\s*(\S+)", output_of("nvpmodel", "-q"))  # Jetson
    facts["power_mode"] = mode.group(1) if mode else ""
    gpus = read_all("/sys/class/devfreq", r".*(gpu|gm20b|gp10b|gv11b|ga10b|gb10b).*", "cur_freq")
    facts["gpu_mhz"] = highest(gpus, 1e6)
    events = [read_all("/sys/class/hwmon", r"hwmon\d+", f"oc{number}_event_cnt") for number in (1, 2, 3)]
    facts["over_current_times"] = highest([text for texts in events for text in texts], 1)
    facts["load"] = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {key: value for key, value in facts.items() if value not in (None, "")}


def cores() -> int:
    """Return how many processors this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux has it
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def cpu_name() -> str:
    board = read_text("/proc/device-tree/model").strip("\0\n")
    name = re.search(r"model name\s*:\s*(.+)", read_text("/proc/cpuinfo"))
    return board or (name.group(1) if name else platform.processor())


def read_all(folder: str, names: str, file: str) -> List[str]:
    try:
        found = [name for name in os.listdir(folder) if re.match(names + r"\Z", name)]
    except OSError:
        return []
    texts = [read_text(os.path.join(folder, name, file)).strip() for name in found]
    return [text for text in texts if text]


def highest(texts: List[str], unit: float) -> Optional[float]:
    numbers = [int(text) / unit for text in texts if re.match(r"-?\d{1,12}\Z", text)]
    return max(numbers) if numbers else None


def read_text(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(10**6).decode("utf-8", "replace")
    except OSError:
        return ""


def output_of(*command: str) -> str:
    import subprocess

    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode("utf-8", "replace")


# -- the command line ---------------------------------------------------------------------------------------


def say(text: str, stream: Any = None) -> None:
    """Print a line, without what a terminal would obey, also where it lacks some of the letters."""
    stream = stream or sys.stdout
    if stream is None:
        raise RunnerError("There is no standard output to answer on.", BAD_MACHINE)
    text, encoding = clean(text), stream.encoding or "ascii"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # or Python tries once more at its end
        if isinstance(error, BrokenPipeError):
            raise
        raise RunnerError(f"The answer cannot be written: {error.strerror}.", BAD_MACHINE) from error


def clean(text: str) -> str:
    """Return text with a question mark for all that is not printable."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def show(answer: Dict[str, Any], as_json: bool) -> None:
    """Print one image's answer."""
    if as_json:
        say(json.dumps({key: value for key, value in answer.items() if key != "outputs"}, sort_keys=True))
    elif "error" in answer:
        say(f"{answer['image']}: {answer['error']}", sys.stderr)
    else:
        parts = [f"{found['label']} {100 * found['share']:.1f} %" for found in answer.get("top", ())]
        for found in answer.get("ranges", ()):
            low, high = ("NaN" if found[end] is None else f"{found[end]:.4g}" for end in ("min", "max"))
            parts.append(f"{found['name']} {found['shape']} {low} to {high}")
        say(f"{answer['image']}: {', '.join(parts)}")


def show_bench(result: Dict[str, Any]) -> None:
    say(
        "median {median_ms:.3f} ms, p90 {p90_ms:.3f} ms, {throughput_per_s:.1f} images/s ({runs} runs, "
        "batch {batch}, threads {threads}, {runtime} {version})".format(**result)
    )
    if "beside" in result:
        ends = result["speedup_interval"]
        span = f" ({ends[0]:.2f} to {ends[1]:.2f})" if ends else ""
        say(
            "beside it: median {median_ms:.3f} ms, p90 {p90_ms:.3f} ms ({runs} runs)".format(
                **result["beside"]
            )
            + f": this one is {result['speedup']:.2f} times as fast{span}"
        )
    if result["engine"]:
        say("engine: " + ", ".join(f"{name} {value}" for name, value in sorted(result["engine"].items())))
    for when in ("before", "after"):
        facts = sorted(result["machine"][when].items())
        say(f"{when}: " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts))


def show_check(result: Dict[str, Any]) -> None:
    say(f"{result['files']} files are as they were made.")
    for name, apart in sorted(result["distance"].items()):
        apart = "cannot be compared" if apart is None else f"is {apart:.4f} away"
        say("{} {} from what was recorded; {:.4f} is allowed.".format(name, apart, result["tolerance"]))
    say("All is well." if result["ok"] else "The answers are NOT those that were recorded.")


def show_build(session: Any, as_json: bool) -> None:
    facts = dict(session.facts, runtime=session.name, version=session.version)
    if as_json:
        say(json.dumps(facts, sort_keys=True))
    elif not session.facts:
        say(f"{session.name} {session.version} takes the model as it is: nothing is built.")
    else:
        fresh = f"built in {facts['built_s']} s" if facts["built_s"] is not None else "kept from before"
        say(f"{facts['engine']} for {facts['gpu']}, {session.name} {session.version}: {fresh}.")


def found_in(paths: Iterable[str]) -> Iterator[Tuple[str, str]]:
    """Yield each file given, and each image in each folder given."""
    for path in paths:
        if not os.path.isdir(path):
            yield path, path
            continue
        found = False
        closed: List[OSError] = []
        for folder, folders, names in os.walk(path, onerror=closed.append):
            folders.sort()
            for name in sorted(names):
                if name.lower().endswith(SUFFIXES):
                    found = True
                    yield os.path.join(folder, name), os.path.join(folder, name)
        for name in [error.filename for error in closed] or ([] if found else [path]):
            yield name, name  # an answer tells what is wrong with it


def frames(source: str) -> Iterator[Tuple[str, Any]]:
    """Yield frames of a camera (its number) or a stream (its URL) until it ends."""
    from PIL import Image

    try:
        import cv2  # type: ignore[import-not-found,unused-ignore]  # only some boards have it
    except ImportError as error:
        raise RunnerError(
            f"--camera needs OpenCV: type `{sys.executable} -m pip install opencv-python-headless`.",
            BAD_MACHINE,
        ) from error
    number = re.match(r"[0-9]{1,6}\Z", source)
    capture = cv2.VideoCapture(int(source) if number else source)
    if not capture.isOpened():
        raise RunnerError(f"The camera {source} cannot be opened.", BAD_MACHINE)
    count = 0
    while True:
        there, frame = capture.read()
        if not there:
            break
        yield f"frame {count}", Image.fromarray(frame[..., ::-1])
        count += 1
    if not count or number:
        raise RunnerError(f"The camera {source} gave no more images after {count}.", BAD_MACHINE)


def positive(text: str, most: int = 1024) -> int:
    if not re.match(r"[0-9]{1,9}\Z", text) or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"a whole number from 1 to {most}")
    return int(text)


def duration(text: str) -> int:
    return positive(text, 3600)


def arguments(words: Optional[List[str]]) -> argparse.Namespace:
    description, _, rest = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser(
        description=description, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("images", nargs="*", help="photographs, or folders of them")
    parser.add_argument("--top", type=positive, default=5, metavar="N", help="how many classes to name (5)")
    parser.add_argument("--json", action="store_true", help="answer in JSON, an object a line")
    parser.add_argument("--threads", type=positive, default=0, metavar="N", help="threads of one inference")
    parser.add_argument("--batch", type=positive, default=0, metavar="N", help="images that go in together")
    parser.add_argument("--camera", metavar="SOURCE", help="number of a camera, or URL of a stream")
    parser.add_argument("--bench", action="store_true", help="time the model on this machine")
    parser.add_argument("--seconds", type=duration, default=5, metavar="S", help="how long to time (5)")
    parser.add_argument(
        "--beside", default="", metavar="DIR", help="with --bench: time another bundle in turn"
    )
    parser.add_argument("--check", action="store_true", help="compare files and answers with the record")
    parser.add_argument("--build", action="store_true", help="build the engine for this machine, and keep it")
    parser.add_argument("--any-machine", action="store_true", help="run also where answers may be others")
    options = parser.parse_args(words)
    asked = (bool(options.images), bool(options.camera), options.bench, options.check, options.build)
    if sum(asked) != 1:
        parser.error("give photographs, --camera, --bench, --check or --build, and one of them")
    if options.beside and not options.bench:
        parser.error("--beside goes with --bench")
    return options


def work(options: argparse.Namespace) -> int:
    """Do what was asked, and return the exit code."""
    bundle = Bundle(os.path.dirname(os.path.realpath(__file__)))
    require(bundle.manifest["runtime"])
    model = Model(bundle, options.threads, options.batch, options.any_machine)
    for note in model.notes:
        say("note: " + note, sys.stderr)
    if options.build:
        show_build(model.session, options.json)
        return 0
    if options.bench or options.check:
        timed = options.bench
        result = bench(bundle, model, options.seconds, options.beside) if timed else check(bundle, model)
        if options.json:
            say(json.dumps(result, sort_keys=True))
        else:
            (show_bench if options.bench else show_check)(result)
        return 0 if result.get("ok", True) else BAD_BUNDLE
    code = 0
    for answer in model.answer(
        frames(options.camera) if options.camera else found_in(options.images), options.top
    ):
        show(answer, options.json)
        code = FAILED_IMAGE if "error" in answer else code
    return code


def main(words: Optional[List[str]] = None) -> int:
    """Run the command line; what goes wrong is said in one line."""
    options = arguments(words)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on metadata
    try:
        return work(options)
    except RunnerError as error:
        if sys.stderr is not None:
            say(f"error: {error}", sys.stderr)
        return error.code
    except BrokenPipeError:  # whoever read the answers has seen enough
        return 0
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
