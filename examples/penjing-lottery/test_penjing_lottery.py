from pathlib import Path

from penjing.testing import check_step, small_context, small_model
from penjing_lottery import Lottery


def test_lottery_keeps_its_promises(tmp_path: Path) -> None:
    result = check_step(Lottery(sparsity=0.3), small_model(tmp_path), small_context(tmp_path))

    weight = result.value[0].weight
    assert 0.2 < (weight == 0).float().mean() < 0.4
