"""Train with several seeds, and tell how far results differ by chance.   params.yaml -> a table on stdout

Not a stage: `python -m commands.seeds 3` runs experiments seed-1, seed-2 and seed-3 of what is in the
workspace, one after the other, each in a folder of its own; `dvc exp apply seed-2` takes one over. What ran before
comes from DVC's cache.
"""

import argparse
import statistics
import subprocess
from contextlib import suppress

from stages.lib.history import (
    BITS_PER_BYTE,
    Metric,
    Run,
    chance,
    describe_recipe,
    find_run,
    git,
    read_flat_params,
    read_metric,
)
from stages.lib.params import Mistake

COLUMNS = {  # metrics of the held-out documents
    "perplexity": Metric("evaluate/tuned", "document.perplexity"),
    "bits per byte": BITS_PER_BYTE,
    "accuracy": Metric("evaluate/tuned", "document.accuracy"),
    "times base perplexity": Metric("compare", "base_to_tuned.perplexity_ratio"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("seeds", type=int, help="how many, from 1")
    num_seeds = parser.parse_args().seeds
    if num_seeds < 2:
        parser.error("two seeds at least: one has no spread")
    names = [f"seed-{seed}" for seed in range(1, num_seeds + 1)]
    found = {name: run(name, seed) for seed, name in enumerate(names, start=1)}
    print(table(found))
    if told := describe_recipe(Run("HEAD", git("rev-parse", "HEAD").strip())):
        print(f"\n{told}")


def run(name: str, seed: int) -> dict[str, float]:
    """Run one experiment, in place of an earlier one of its name.

    Returns:
        What `COLUMNS` names, and what decides on answers where it answered held-out conversations.
    """
    subprocess.run(["dvc", "exp", "remove", "-q", name], stderr=subprocess.DEVNULL, check=False)
    command = ["dvc", "exp", "run", "--temp", "--name", name, "-S", f"train.seed={seed}"]
    if subprocess.run(command, check=False).returncode:
        raise Mistake(f"{' '.join(command)} failed, for the reason above")
    done = find_run(name)
    found = {column: read_metric(done, metric) for column, metric in COLUMNS.items()}
    decides = str(read_flat_params(done).get("answers.metric"))
    with suppress(Mistake):  # a text is not answered
        found[decides] = read_metric(done, Metric("answers", f"{decides}.tuned"))
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Tabulate experiments, their mean and spread, and how far two runs may differ by their seeds alone.

    The last row is the half-width of a 95 % interval for the difference of two runs that differ in nothing but the
    seed: Student's t for the number of seeds, times the standard deviation, times the square root of two.
    """
    names = list(next(iter(found.values())))
    rows = {name: list(values.values()) for name, values in found.items()}
    columns = list(zip(*rows.values()))
    deviations, chances = [statistics.stdev(values) for values in columns], [chance(values) for values in columns]
    rows["mean"] = [statistics.fmean(values) for values in columns]
    rows["standard deviation"] = deviations
    rows["chance alone, between two runs"] = chances
    lines = [f"| | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    return "\n".join(
        lines + [f"| {name} | {' | '.join(f'{value:.4f}' for value in row)} |" for name, row in rows.items()]
    )


if __name__ == "__main__":
    main()
