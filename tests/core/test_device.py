from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing.device import LARGEST_PROFILE, Device, builtin_profiles, find_device, read_profile
from penjing.errors import InputError, PlanError

PROFILE = """
name = "board"
title = "A board"
backend = "tensorrt"
arch = "aarch64"
isa = ["neon"]
precisions = ["fp32", "fp16"]
channel_multiple = 8
max_opset = 17
memory_gb = 4
runtime = { tensorrt = "==8.5.*" }
sm = "8.7"
dla_cores = 2

[facts]
cpu = "4 cores"
tops = { int8 = 20, fp16 = 10 }

[sources]
arch = "a"
isa = "a"
precisions = "a"
channel_multiple = "a"
max_opset = "a"
memory_gb = "a"
runtime = "a"
sm = "a"
dla_cores = "a"
cpu = "a"
tops.int8 = "a"
tops.fp16 = "b"

[[recipe]]
use = "quant.static"
optional = true
"""
STACKS = """
[[stack]]
name = "old"
max_opset = 13
dla_cores = 0
[stack.facts]
cuda = "10.2"
[stack.sources]
cuda = "b"
max_opset = "c"
[[stack.recipe]]
use = "quant.fp16"

[[stack]]
name = "new"
default = true
"""
DOCS = Path(__file__).parents[2] / "docs" / "devices.md"
BUILTIN = [path.stem for path in builtin_profiles()]
CONFIDENCE = (
    "file", "deb index", "docs", "issue", "measured", "third-party table",
    "recalled", "inferred", "assumed", "definition",
)  # fmt: skip


def write(folder: Path, text: str, name: str = "board") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


def every_stack(name: str) -> list[Device]:
    device = find_device(name, builtin_profiles())
    return [find_device(f"{name}@{stack}", builtin_profiles()) for stack in device.stacks] or [device]


def test_a_profile_is_read_as_it_is_written(tmp_path: Path) -> None:
    device = read_profile(write(tmp_path, PROFILE))

    assert (device.name, device.sm, device.dla_cores, device.stack, device.here) == (
        "board",
        "8.7",
        2,
        "",
        False,
    )
    assert device.runtime == {"tensorrt": "==8.5.*"}
    assert device.facts == {"cpu": "4 cores", "tops": {"int8": 20, "fp16": 10}}
    assert device.sources["tops.fp16"] == "b"
    assert device.recipe == ({"use": "quant.static", "optional": True},)


def test_a_stack_overrides_what_it_names_and_keeps_the_rest(tmp_path: Path) -> None:
    path = write(tmp_path, PROFILE + STACKS)
    old, new = read_profile(path, "old"), read_profile(path)

    assert (old.max_opset, old.dla_cores, old.recipe) == (13, 0, ({"use": "quant.fp16"},))
    assert old.facts == {"cpu": "4 cores", "tops": {"int8": 20, "fp16": 10}, "cuda": "10.2"}
    assert (old.sources["max_opset"], old.sources["cpu"]) == ("c", "a")
    assert (new.max_opset, new.stack, new.stacks) == (17, "new", ("old", "new"))
    assert (str(old), str(new)) == ("board@old", "board@new")


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        (
            "max_opset = 17",
            "max_opsets = 17",
            "max_opsets: not a field of a profile. Did you mean max_opset?",
        ),
        ("max_opset = 17\n", "", "max_opset: missing"),
        ("max_opset = 17", "max_opset = 17.5", "max_opset: must be a whole number"),
        ("max_opset = 17", "max_opset = true", "max_opset: must be a whole number"),
        ("memory_gb = 4", "memory_gb = nan", "memory_gb: must be a number"),
        ("memory_gb = 4", "memory_gb = -4", "memory_gb: must be a number"),
        ('title = "A board"', 'title = " "', "title: must be text"),
        ('name = "board"', 'name = "other"', "name: is 'other', but the file is called 'board'"),
        ('name = "board"', 'name = "Board@1"', "name: must be a name"),
        ('arch = "aarch64"', 'arch = "arm"', "arch: must be"),
        ('isa = ["neon"]', 'isa = ["nean"]', "isa: 'nean' is not known. Did you mean neon?"),
        ('isa = ["neon"]', 'isa = [["neon"]]', "isa: "),
        ('isa = ["neon"]', 'isa = "neon"', "isa: must be a list"),
        ('sm = "8.7"', 'sm = "87"', "sm: must be a compute capability"),
        ('"==8.5.*"', '"8.5"', "runtime: tensorrt must be versions"),
        ('{ tensorrt = "==8.5.*" }', "{}", "runtime: must name a package"),
        ('cpu = "4 cores"', "cpu = 1979-05-27", "facts: cpu must be text"),
        ('cpu = "4 cores"', "cpu = [inf]", "facts: cpu must be text"),
        ('cpu = "4 cores"', 'cpu = "x"\nsm = "8.7"', "facts.sm: is a field of the profile"),
        ('cpu = "4 cores"', 'cpu = "x"\nidentity = "Pi"', "facts: identity must be a list"),
        ('cpu = "4 cores"', 'cpu = "x"\nidentity = [""]', "facts: identity must be a list"),
        ('sm = "a"\n', "", "sm: has no source"),
        ('runtime = "a"\n', "", "runtime.tensorrt: has no source"),
        ('tops.int8 = "a"\n', "", "tops.int8: has no source"),
        ('cpu = "a"\n', 'cpu = ""\n', "sources: cpu: must be text"),
        ('cpu = "a"\n', 'cpu = "a"\ncpus = "a"\n', "sources.cpus: there is no such fact. Did you mean cpu?"),
        ('use = "quant.static"', 'uses = "quant.static"', "recipe: step 1 needs use"),
        ("optional = true", 'optional = "yes"', "recipe: step 1 (quant.static): optional must be"),
    ],
)
def test_a_fault_is_told_by_file_and_field(tmp_path: Path, before: str, after: str, complaint: str) -> None:
    assert before in PROFILE
    path = write(tmp_path, PROFILE.replace(before, after, 1))

    with pytest.raises(InputError) as caught:
        read_profile(path)

    assert str(path) in caught.value.message
    assert complaint in caught.value.message


@pytest.mark.parametrize(
    ("before", "after", "complaint"),
    [
        ("default = true", "", "stack: exactly one needs default = true"),
        ("max_opset = 13", "max_opset = 13\ndefault = true", "stack: exactly one needs default = true"),
        ('name = "new"', 'name = "old"', "stack: two have the same name"),
        ('name = "old"', "", "stack[0].name: must be a name"),
        ("max_opset = 13", "max_opset = 0", "in stack old, max_opset: must be a whole number"),
        ("max_opset = 13", "opset = 13", "in stack old, opset: not a field"),
        (
            "max_opset = 13",
            'max_opset = 13\nbackend = "onnxrt"',
            "in stack old, backend: belongs to the whole",
        ),
        ('cuda = "b"', "", "in stack old, cuda: has no source"),
    ],
)
def test_a_fault_in_a_stack_that_was_not_chosen_is_told(
    tmp_path: Path, before: str, after: str, complaint: str
) -> None:
    assert before in STACKS
    path = write(tmp_path, PROFILE + STACKS.replace(before, after, 1))

    with pytest.raises(InputError, match="cannot be used") as caught:
        read_profile(path, "new")

    assert complaint in caught.value.message


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b"name = ", b"name = 'x'\n" * 2, b"a = " + b"[" * 2000, b".".join([b"a"] * 2000) + b" = 1"],
    ids=["not UTF-8", "not TOML", "a key twice", "nested too deep", "a key nested too deep"],
)
def test_a_file_that_is_no_profile_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "board.toml"
    path.write_bytes(content)

    with pytest.raises(InputError, match=r"board\.toml"):
        read_profile(path)


def test_a_profile_that_never_ends_is_not_read_to_its_end(tmp_path: Path) -> None:
    path = write(tmp_path, PROFILE + "#" * LARGEST_PROFILE)

    with pytest.raises(InputError, match="larger than 1 MB"):
        read_profile(path)


@given(
    st.dictionaries(
        st.sampled_from(["use", "name", "default", "tensorrt", "cpu", "identity", "facts"])
        | st.text(max_size=8),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
            ),
            max_leaves=8,
        ),
    ),
    st.sampled_from(
        ["isa", "precisions", "runtime", "facts", "sources", "recipe", "stack", "memory_gb", "sm"]
    ),
)
def test_whatever_a_profile_holds_it_is_read_or_refused(values: dict[str, Any], field: str) -> None:
    from unittest.mock import patch

    from penjing import toml

    table = {**toml.loads(PROFILE), field: list(values.values()) if len(values) % 2 else values}
    with patch("penjing.device._load", return_value=table):
        try:
            device = read_profile(Path("board.toml"))
        except InputError as error:
            assert "board.toml" in error.message
        else:
            assert device.name == "board"


def test_an_unknown_device_is_met_with_the_nearest_names() -> None:
    with pytest.raises(PlanError) as caught:
        find_device("jetson-orin-nona", builtin_profiles())

    assert caught.value.hint.startswith("Did you mean jetson-orin-nano")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("jetson-orin-nano@jetpack-6", "jetpack-6.2"),
        ("raspberry-pi-5@jetpack-6.2", "It has none"),
        ("jetson-orin-nano@", "jetpack-6.2"),
    ],
)
def test_an_unknown_stack_is_met_with_the_known_ones(name: str, hint: str) -> None:
    with pytest.raises(PlanError, match="has no stack") as caught:
        find_device(name, builtin_profiles())

    assert hint in caught.value.hint


def test_a_device_may_be_a_path_with_or_without_a_stack(tmp_path: Path) -> None:
    folder = tmp_path / "my@boards"
    folder.mkdir()
    path = write(folder, PROFILE + STACKS)

    assert find_device(str(path), []).stack == "new"
    assert find_device(f"{path}@old", []).stack == "old"
    with pytest.raises(InputError, match="cannot be read"):
        find_device(str(tmp_path / "none.toml"), [])


def test_two_profiles_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="Two profiles"):
        find_device("t4", [*builtin_profiles(), write(tmp_path, "", "t4")])


def test_this_machine_is_a_device() -> None:
    device = find_device("this-machine", [])

    assert device.here
    assert device.backend == "onnxrt"


def test_no_file_may_pose_as_this_machine(tmp_path: Path) -> None:
    path = write(tmp_path, PROFILE.replace('"board"', '"this-machine"'), "this-machine")

    with pytest.raises(InputError, match="stands for the machine we run on"):
        read_profile(path)


@pytest.mark.parametrize("name", BUILTIN)
def test_every_source_tells_how_sure_it_is(name: str) -> None:
    for device in every_stack(name):
        for fact, source in device.sources.items():
            assert source.endswith(tuple(f"({word})" for word in CONFIDENCE)), f"{device} {fact}: {source}"


@pytest.mark.parametrize("name", BUILTIN)
def test_recipes_lead_to_the_backend_and_ask_only_for_what_the_device_can_do(name: str) -> None:
    for device in every_stack(name):
        steps = [step["use"] for step in device.recipe]
        assert steps[:2] == ["onnx.export", "onnx.simplify"]
        assert steps[-1] == device.backend
        assert ("quant.static" in steps) == ("int8" in device.precisions)
        assert (device.sm is None) == (device.backend == "onnxrt")


def test_the_builtin_profiles_are_all_there() -> None:
    assert {
        "x86-64-avx2", "x86-64-avx512", "x86-64-avx512-vnni", "intel-n100",
        "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "raspberry-pi-zero-2-w",
        "jetson-nano", "jetson-xavier-nx", "jetson-agx-xavier", "jetson-orin-nano", "jetson-orin-nx",
        "jetson-agx-orin", "jetson-thor", "rtx-3090", "rtx-4090", "t4", "l4", "a10",
    } <= set(BUILTIN)  # fmt: skip


def test_jetson_nano_computes_no_int8() -> None:
    (device,) = every_stack("jetson-nano")

    assert "int8" not in device.precisions
    assert [step["use"] for step in device.recipe] == [
        "onnx.export",
        "onnx.simplify",
        "quant.fp16",
        "tensorrt",
    ]


@pytest.mark.parametrize("name", [name for name in BUILTIN if name.startswith("jetson")])
def test_there_is_no_dla_where_the_hardware_or_tensorrt_has_none(name: str) -> None:
    with_dla = {
        "jetson-xavier-nx": {"jetpack-4.6", "jetpack-5.1"},
        "jetson-agx-xavier": {"jetpack-4.6", "jetpack-5.1"},
        "jetson-orin-nx": {"jetpack-5.1", "jetpack-6.0", "jetpack-6.2"},
        "jetson-agx-orin": {"jetpack-5.1", "jetpack-6.0", "jetpack-6.2", "jetpack-7.2.2"},
    }

    assert {d.stack for d in every_stack(name) if d.dla_cores} == with_dla.get(name, set())


@pytest.mark.parametrize(
    ("name", "tensorrt", "opset"),
    [
        ("jetson-nano", "==8.2.*", 13),
        ("jetson-agx-orin@jetpack-5.1", "==8.5.*", 17),
        ("jetson-agx-orin@jetpack-6.0", "==8.6.*", 17),
        ("jetson-agx-orin", "==10.3.*", 20),
        ("jetson-agx-orin@jetpack-7.2", "==10.16.*", 24),
        ("jetson-agx-orin@jetpack-7.2.2", "==11.4.*", 24),
        ("jetson-thor@jetpack-7.1", "==10.13.*", 20),
        ("t4", ">=10.0,<11", 20),
        ("t4@tensorrt-11", ">=11.1,<12", 24),
    ],
)
def test_the_opset_is_one_that_the_oldest_tensorrt_of_the_stack_parses(
    name: str, tensorrt: str, opset: int
) -> None:
    device = find_device(name, builtin_profiles())

    assert (device.runtime, device.max_opset) == ({"tensorrt": tensorrt}, opset)


def test_tensorrt_8_is_offered_no_format_that_came_later() -> None:
    for name in BUILTIN:
        for device in every_stack(name):
            if device.runtime.get("tensorrt", "").startswith("==8"):
                assert not {"bf16", "fp8", "fp4", "int4"} & set(device.precisions), str(device)


def test_the_table_in_the_docs_agrees_with_the_profiles() -> None:
    rows = []
    for name in BUILTIN:
        device = find_device(name, builtin_profiles())
        stacks = ", ".join(f"**{s}**" if s == device.stack else s for s in device.stacks) or "–"
        runtime = ", ".join(f"{package} {versions}" for package, versions in device.runtime.items())
        rows.append(
            f"| `{name}` | {device.title} | {device.memory_gb:g} | {' '.join(device.precisions)} "
            f"| {runtime} | {device.max_opset} | {device.dla_cores or '–'} | {stacks} |"
        )

    table = DOCS.read_text("utf-8").split("| device |")[1].split("\n\n")[0].splitlines()[2:]

    assert table == rows, "the table in docs/devices.md should be:\n" + "\n".join(rows)


def test_the_profile_in_the_docs_can_be_used(tmp_path: Path) -> None:
    example = DOCS.read_text("utf-8").split("```toml\n")[1].split("```")[0]

    device = read_profile(write(tmp_path, example, "our-camera"))

    assert device.facts["identity"] == ["Our Camera Mk2"]
