"""Several processes that train together, started by torchrun."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from penjing.errors import StepError
from penjing.ranks import Ranks, from_environment
from torch.distributed import HashStore


def both(work: Callable[[Ranks], Any]) -> list[Any]:
    """Do some work as two ranks at the same time; return what each returned or raised."""
    store, results = HashStore(), [None, None]

    def one(rank: int) -> None:
        try:
            results[rank] = work(Ranks(rank, 2, rank, store))
        except StepError as error:
            results[rank] = error

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return results


def test_a_process_on_its_own_agrees_with_itself(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    ranks = from_environment()
    ranks.agree([1], "list")
    assert (ranks.first, ranks.world, ranks.tell({"a": 1}), ranks.gather(3)) == (True, 1, {"a": 1}, [3])
    assert ranks.may_speak()


def test_rank_0_tells_and_all_gather_in_turn():
    def work(ranks):
        told = [ranks.tell([ranks.rank, turn]) for turn in range(3)]
        return told, ranks.gather({"rank": ranks.rank})

    expected = ([[0, 0], [0, 1], [0, 2]], [{"rank": 0}, {"rank": 1}])
    assert both(work) == [expected, expected]


def test_what_differs_between_processes_is_an_error_in_all_of_them():
    found = both(lambda ranks: ranks.agree(ranks.rank // 1, "key of a step"))
    assert [error.message for error in found] == ["Rank 1 has another key of a step than rank 0."] * 2


def test_only_the_first_that_fails_speaks():
    assert sorted(both(lambda ranks: ranks.may_speak())) == [False, True]


COMMAND = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def torchrun(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Start two processes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *COMMAND, *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300
    )


SCRIPT = """
import dataclasses, sys, importlib.util
from pathlib import Path
from penjing import open_data
from penjing.ranks import from_environment
from penjing_training import TrainingOptions, checkpoint
from penjing_training.loop import train
from torch import nn

specification = importlib.util.spec_from_file_location("kit", sys.argv[1])
kit = importlib.util.module_from_spec(specification)
sys.modules["kit"] = kit
specification.loader.exec_module(kit)
from penjing import Context, Goal

ranks = from_environment()
here = Path(sys.argv[2])
context = Context(None, Goal(), open_data(here / "photos", outputs=3), here, None, ranks=ranks, scratch=here / "s")
module = kit.network(norm=False)
module[7] = nn.Identity()  # dropout draws other numbers in each process
options = TrainingOptions(epochs=2, batch_size=15, optimiser="sgd", learning_rate=0.05, accumulate=2)
trained = train(module, options, kit.as_model(module), context)
state = trained.state_dict()
ranks.agree(checkpoint.digest_of(state), "weights")
if ranks.first:
    checkpoint.write(here / f"result-{ranks.world}.safetensors", state, {"job": "", **context.details["training"]})
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_and_end_with_equal_weights(tmp_path, kit):
    from penjing_training import checkpoint

    kit.photographs(tmp_path / "photos")
    (tmp_path / "script.py").write_text(SCRIPT)
    conftest = Path(__file__).with_name("conftest.py")
    alone = subprocess.run(
        [sys.executable, "script.py", conftest, tmp_path],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert alone.returncode == 0, alone.stderr
    for path in (tmp_path / "s").iterdir():
        path.unlink()
    two = torchrun("script.py", conftest, tmp_path, cwd=tmp_path)
    assert two.returncode == 0, two.stderr

    (one, its), (other, theirs) = (
        checkpoint.read(tmp_path / f"result-{world}.safetensors", "") for world in (1, 2)
    )
    assert (its["steps"], its["processes"]) == (theirs["steps"], 1)
    assert theirs["processes"] == 2
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-5)


@pytest.fixture
def job(tmp_path, kit, plain) -> tuple[object, ...]:
    """Return the arguments of a job in `tmp_path`."""
    kit.photographs(tmp_path / "photos")
    plain.lay_out(tmp_path)
    (tmp_path / "recipe.toml").write_text(
        '[[recipe]]\nuse = "distill.features"\nepochs = 2\nbatch_size = 16\n'
        '[[recipe]]\nuse = "onnx.export"\n[[recipe]]\nuse = "onnxrt"\n'
    )
    return (
        *(
            "-m",
            "penjing",
            "compress",
            "model.py:network",
            "--data",
            "photos",
            "--preprocess",
            "preprocess.toml",
        ),
        *("--recipe", "recipe.toml", "--device", "raspberry-pi-5", "--out", "run"),
    )


@pytest.mark.slow
def test_the_same_command_under_torchrun_makes_one_run_and_one_report(job, tmp_path):
    found = torchrun(*job, cwd=tmp_path)

    assert found.returncode == 0, found.stderr
    assert found.stdout.count("Report: run/report.html") == 1
    assert found.stderr.count("optimised model:") == 1
    assert '"processes": 2' in next((tmp_path / "run").glob("steps/distill.features-*/step.json")).read_text()
    assert not list((tmp_path / "run").rglob(".unfinished*"))
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("which", ["one", "all"])
def test_a_rank_that_fails_ends_all_with_one_message(job, tmp_path, which):
    broken = (
        'raise ValueError("as asked")' if which == "all" else 'assert os.environ["RANK"] == "0", "as asked"'
    )
    (tmp_path / "model.py").write_text(f"import os\n{broken}\n" + (tmp_path / "model.py").read_text())
    found = torchrun(*job, cwd=tmp_path)

    assert found.returncode != 0
    assert found.stderr.count("error: model.py cannot be imported") == 1
    assert not list((tmp_path / "run").rglob("report.json"))
