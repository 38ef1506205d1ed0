import dataclasses
import platform
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from penjing import here
from penjing.device import ISA, Device, builtin_profiles, read_profile

ZEN_4 = """processor\t: 0
vendor_id\t: AuthenticAMD
cpu family\t: 25
model name\t: AMD EPYC 9R14
flags\t\t: fpu vme sse sse2 ht syscall nx avx f16c fma bmi1 avx2 smep bmi2 erms avx512f avx512dq rdseed adx \
avx512ifma clflushopt clwb avx512cd sha_ni avx512bw avx512vl avx512_bf16 avx512vbmi avx512_vbmi2 gfni vaes \
avx512_vnni avx512_bitalg avx512_vpopcntdq rdpid
bugs\t\t: sysret_ss_attrs

processor\t: 1
model name\t: another
flags\t\t: fpu
"""
HASWELL = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Core(TM) i7-4770 CPU @ 3.40GHz
flags\t\t: fpu vme sse4_1 sse4_2 x2apic movbe popcnt aes xsave avx f16c rdrand avx2 smep bmi2 erms
"""
SKYLAKE_X = HASWELL.replace("i7-4770", "i9-7900X").replace(
    "erms", "erms avx512f avx512dq avx512cd avx512bw avx512vl"
)
N100 = HASWELL.replace("Core(TM) i7-4770 CPU @ 3.40GHz", "N100").replace("erms", "erms avx_vnni")
SAPPHIRE_RAPIDS = ZEN_4.replace("avx512_vnni", "avx512_vnni avx_vnni amx_bf16 amx_tile amx_int8")
KNIGHTS_LANDING = HASWELL.replace("erms", "erms avx512f avx512pf avx512er avx512cd")
PI_4 = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU part\t: 0xd08

Hardware\t: BCM2835
Model\t\t: Raspberry Pi 4 Model B Rev 1.4
"""
PI_5 = """processor\t: 0
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
GRAVITON_3 = PI_5.replace("asimddp", "asimddp sve i8mm bf16").replace("0xd0b", "0xd40")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Iterator["Pretend"]:
    yield Pretend(monkeypatch)
    here.this_machine.cache_clear()


class Pretend:
    """Makes this machine say what another would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.patch = monkeypatch.setattr

    def __call__(self, arch: str, cpuinfo: str, board: str = "", system: str = "Linux") -> Device:
        here.this_machine.cache_clear()
        files = {Path("/proc/cpuinfo"): cpuinfo, Path("/proc/device-tree/model"): board.partition("\0")[0]}
        files[Path("/proc/device-tree/compatible")] = board.partition("\0")[2]
        self.patch(here, "_read", lambda path: files[path])
        self.patch(platform, "machine", lambda: arch)
        self.patch(platform, "system", lambda: system)
        self.patch(platform, "processor", lambda: "")
        return here.this_machine()


def builtin(name: str) -> Device:
    (path,) = [path for path in builtin_profiles() if path.stem == name]
    return read_profile(path)


@pytest.mark.parametrize(
    ("text", "isa"),
    [
        (ZEN_4, {"avx2", "avx512", "avx512_vnni"}),
        (HASWELL, {"avx2"}),
        (SKYLAKE_X, {"avx2", "avx512"}),
        (N100, {"avx2", "avx_vnni"}),
        (SAPPHIRE_RAPIDS, {"avx2", "avx512", "avx512_vnni", "avx_vnni", "amx"}),
        (KNIGHTS_LANDING, {"avx2"}),
        (PI_4, {"neon"}),
        (PI_5, {"neon", "dotprod", "fp16"}),
        (GRAVITON_3, {"neon", "dotprod", "i8mm", "fp16"}),
        ("", set()),
        ("flags without a colon\n", set()),
    ],
)
def test_instructions_are_told_from_cpuinfo(text: str, isa: set[str]) -> None:
    assert here.parse_cpuinfo(text).isa == isa


def test_the_first_processor_names_the_cpu() -> None:
    assert here.parse_cpuinfo(ZEN_4).model == "AMD EPYC 9R14"
    assert here.parse_cpuinfo(PI_4).model == "ARM core, implementer 0x41, part 0xd08"
    assert here.parse_cpuinfo("") == here.Cpu("", frozenset())


def test_instructions_are_told_from_sysctl() -> None:
    m2 = "hw.optional.neon: 1\nhw.optional.arm.FEAT_DotProd: 1\nhw.optional.arm.FEAT_I8MM: 1\n"
    m2 += "hw.optional.arm.FEAT_FP16: 1\nhw.optional.arm.FEAT_SME: 0\nmachdep.cpu.brand_string: Apple M2\n"
    mac_pro = "hw.optional.avx2_0: 1\nhw.optional.avx512f: 0\nmachdep.cpu.brand_string: Intel(R) Xeon(R) W\n"
    ice_lake = "hw.optional.avx2_0: 1\nmachdep.cpu.leaf7_features: AVX2 AVX512F AVX512VNNI\n"

    assert here.parse_sysctl(m2) == here.Cpu("Apple M2", frozenset({"neon", "dotprod", "i8mm", "fp16"}))
    assert here.parse_sysctl(mac_pro) == here.Cpu("Intel(R) Xeon(R) W", frozenset({"avx2"}))
    assert here.parse_sysctl(ice_lake).isa == {"avx2", "avx512_vnni"}


@given(st.text())
def test_any_text_is_a_cpu_of_some_kind(text: str) -> None:
    assert here.parse_cpuinfo(text).isa <= ISA
    assert here.parse_sysctl(text).isa <= ISA


@pytest.mark.parametrize(
    ("version", "reads"),
    [
        ("1.16.3", (19, 9)),
        ("1.20.1", (21, 10)),
        ("1.22.0", (22, 10)),
        ("1.32.0", (28, 14)),
        ("1.99", (28, 14)),
        ("2.0.0.dev1", (28, 14)),
        ("1.15.1", (0, 0)),
        ("unknown", (0, 0)),
    ],
)
def test_each_onnxruntime_has_its_ceiling(version: str, reads: tuple[int, int]) -> None:
    assert here.ceiling(version) == reads


def test_this_machine_is_told_with_a_source_for_every_fact() -> None:
    device = here.this_machine()
    facts = {
        "arch",
        "isa",
        "precisions",
        "channel_multiple",
        "max_opset",
        "memory_gb",
        "runtime",
        *device.facts,
    }

    assert device.here
    assert device.name == "this-machine"
    assert set(device.sources) == facts
    assert [step["use"] for step in device.recipe] == [
        "onnx.export",
        "onnx.simplify",
        "quant.static",
        "onnxrt",
    ]


def test_a_system_that_tells_no_instructions_is_assumed_to_have_the_least(pretend: Pretend) -> None:
    device = pretend("AMD64", "", system="Windows")

    assert (device.arch, device.isa) == ("x86_64", frozenset())
    assert "cannot be told" in device.facts["note"]
    assert not here.is_here(builtin("x86-64-avx2"))


def test_every_64_bit_arm_has_neon(pretend: Pretend) -> None:
    assert pretend("arm64", "", system="Windows").isa == {"neon"}


@pytest.mark.parametrize(
    ("cpuinfo", "profile"),
    [
        (HASWELL, "x86-64-avx2"),
        (SKYLAKE_X, "x86-64-avx512"),
        (ZEN_4, "x86-64-avx512-vnni"),
        (N100, "intel-n100"),
    ],
)
def test_a_profile_is_here_where_the_instructions_agree(pretend: Pretend, cpuinfo: str, profile: str) -> None:
    pretend("x86_64", cpuinfo)

    assert [path.stem for path in builtin_profiles() if here.is_here(read_profile(path))] == [profile]


def test_amx_is_no_plain_vnni(pretend: Pretend) -> None:
    pretend("x86_64", SAPPHIRE_RAPIDS)

    assert not here.is_here(builtin("x86-64-avx512-vnni"))


def test_a_certain_cpu_is_not_here_because_its_instructions_are(pretend: Pretend) -> None:
    pretend("x86_64", N100.replace("N100", "Core(TM) i9-12900"))

    assert not here.is_here(builtin("intel-n100"))


@pytest.mark.parametrize(
    ("board", "cpuinfo", "profile"),
    [
        ("Raspberry Pi 4 Model B Rev 1.4\0raspberrypi,4-model-b\0brcm,bcm2711\0", PI_4, "raspberry-pi-4"),
        ("Raspberry Pi 5 Model B Rev 1.0\0raspberrypi,5-model-b\0", PI_5, "raspberry-pi-5"),
        ("Raspberry Pi Zero 2 W Rev 1.0\0raspberrypi,model-zero-2-w\0", PI_4, "raspberry-pi-zero-2-w"),
        (
            "NVIDIA Jetson Orin Nano Developer Kit\0nvidia,p3768-0000+p3767-0005-super\0nvidia,tegra234\0",
            PI_5,
            "jetson-orin-nano",
        ),
        (
            "NVIDIA Jetson AGX Orin\0nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0",
            PI_5,
            "jetson-agx-orin",
        ),
        ("Raspberry Pi 40 Model X\0", PI_4, ""),
        ("Raspberry Pi 4 Model B\0", PI_5, ""),  # a name, but not its CPU
        ("NVIDIA Jetson Orin Nano 4GB\0nvidia,p3767-0004\0", PI_5, ""),  # half the GPU
        ("", PI_5, ""),
    ],
)
def test_a_board_is_here_where_the_device_tree_names_it(
    pretend: Pretend, board: str, cpuinfo: str, profile: str
) -> None:
    device = pretend("aarch64", cpuinfo, board)

    assert [p.stem for p in builtin_profiles() if here.is_here(read_profile(p))] == (
        [profile] if profile else []
    )
    if profile:
        assert device.facts["profile"] == profile
        assert device.title == board.partition("\0")[0]


def test_a_desktop_gpu_is_never_claimed(pretend: Pretend) -> None:
    pretend("x86_64", HASWELL)

    assert not here.is_here(builtin("rtx-4090"))


def test_what_is_here_stays_here() -> None:
    assert here.is_here(dataclasses.replace(builtin("raspberry-pi-3"), here=True))
