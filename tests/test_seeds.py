"""Several seeds: the table says what they spread by. (test_end_to_end.py runs two.)"""

from types import SimpleNamespace

import pytest
from scipy.stats import t

from commands import seeds
from commands.seeds import COLUMNS, table
from stages.lib.history import find_run
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake


def test_the_spread_is_student_t_of_two_runs():
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table(
            {f"seed-{n}": dict.fromkeys(COLUMNS, value) for n, value in enumerate((30.0, 31.0, 32.0))}
        ).splitlines()
    ]
    found = {row[0]: row[1:] for row in rows}
    assert rows[0][1:] == list(COLUMNS)
    assert found["mean"] == ["31.0000"] * 4 and found["standard deviation"] == ["1.0000"] * 4
    expected = t.ppf(0.975, 2) * 2**0.5
    assert [float(cell) for cell in found["chance alone, between two runs"]] == pytest.approx([expected] * 4, abs=1e-4)


def ran(status: int):
    return lambda *_, **__: SimpleNamespace(returncode=status)


def test_a_run_that_fails_is_told_in_a_line(monkeypatch):
    monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(run=ran(1), DEVNULL=None))
    with pytest.raises(
        Mistake, match=r"^dvc exp run --temp --name seed-2 -S train\.seed=2 failed, for the reason above$"
    ):
        seeds.run("seed-2", 2)


def test_what_decides_on_answers_is_told_too(monkeypatch):
    """Of the commit that is checked out, as if it were the experiment."""
    monkeypatch.setattr(seeds, "subprocess", SimpleNamespace(run=ran(0), DEVNULL=None))
    monkeypatch.setattr(seeds, "find_run", lambda _: find_run("HEAD"))
    found = seeds.run("seed-1", 1)
    assert [*found] == [*COLUMNS, "exact_match"]
    assert found["exact_match"] == read_metrics("answers")["exact_match"]["tuned"] > 0.5
