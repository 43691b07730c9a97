"""History: the results of commits and experiments, read from Git, where they all are without a checkout."""

import json
import math
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from ruamel.yaml import YAML
from scipy.stats import t

from stages.lib.arithmetic import arithmetic_of
from stages.lib.git import git
from stages.lib.metrics import METRICS, parse_metrics
from stages.lib.params import PARAMS, Mistake
from stages.lib.records import Interval
from stages.lib.results import LOCK
from stages.lib.scoring.comparison import LossComparison, compare_losses
from stages.lib.scoring.document_scores import LOSSES, read_losses
from stages.lib.scoring.intervals import FEWEST_UNITS, over_seeds
from stages.lib.scoring.protocol import CompareParams

ADAPTER = "models/adapter"


class Run(NamedTuple):
    """A commit that holds results: one of a branch, or an experiment's; or what is in the workspace."""

    name: str
    commit: str  # none of the workspace
    baseline: str = ""  # the commit that an experiment was made of

    @property
    def label(self) -> str:
        """Name it, and its commit where the name is another."""
        return f"{self.name} ({self.commit[:7]})" if self.commit else self.name


class Metric(NamedTuple):
    """A number in a commit's metrics."""

    file: str  # in metrics/, without its ending
    name: str  # in full, such as `document.nll`


class Change(NamedTuple):
    """The value of a parameter in two commits; None where it is not there."""

    before: Any
    after: Any


WORKSPACE = Run("workspace", "")
ANSWERING = "generate/tuned"  # metrics of the tuned model's answers
NLL = Metric("evaluate/tuned", "document.nll")  # nats per token
BITS_PER_BYTE = Metric("evaluate/tuned", "document.bits_per_byte")
VALIDATION = Metric("evaluate/tuned", "validation.bits_per_byte")


def find_run(revision: str) -> Run:
    """Return a commit or an experiment by any name that Git or DVC knows it by; HEAD's experiments come first."""
    if revision == WORKSPACE.name:
        return WORKSPACE
    for run in list_experiments():
        if run.name == revision:
            return run
    return Run(revision, git("rev-parse", "--verify", f"{revision}^{{commit}}").strip())


def list_experiments(baseline: str | None = None) -> list[Run]:
    """List DVC's experiments, of one commit or of all: those of HEAD first, the last made first."""
    refs = git("for-each-ref", "--sort=-committerdate", "--format=%(refname) %(objectname)", "refs/exps").splitlines()
    runs = []
    for name, commit in (ref.split(" ") for ref in refs):
        parts = name.split("/")  # refs/exps/<2 digits>/<38 digits>/<name>
        if len(parts) == 5 and len(parts[3]) == 38 and baseline in (None, parts[2] + parts[3]):
            runs.append(Run(parts[4], commit, parts[2] + parts[3]))
    head = git("rev-parse", "HEAD").strip() if runs else ""
    return sorted(runs, key=lambda run: run.baseline != head)


def list_tries() -> list[Run]:
    """List HEAD and the experiments of all commits, each try once: parameters and results that come again are the same.

    Experiments that stand in Git without results, or with those of a pipeline of another shape, are left out.
    """
    tries: dict[tuple[Any, ...], Run] = {}
    for run in [Run("HEAD", git("rev-parse", "HEAD").strip()), *list_experiments()]:
        try:
            params, losses = read_flat_params(run), read_losses(read(run, LOSSES)).set_index("id").sort_index()
            results = tuple(losses["tuned"].round(3))  # a run repeated elsewhere differs in later digits
        except (Mistake, KeyError, ValueError):
            continue
        params = {name: value for name, value in params.items() if not name.startswith("run.")}  # where, not what
        tries.setdefault((json.dumps(params, sort_keys=True, default=str), *losses.index, *results), run)
    return list(tries.values())


def read(run: Run, path: Path | str) -> str:
    """Read a file of a commit, by its path from here: the project may be a folder of a larger repository.

    Raises:
        Mistake: It is not there.
    """
    if run == WORKSPACE:
        try:
            return Path(path).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise Mistake(f"{path}: not there yet; `make repro` makes it") from None
    return git("show", f"{run.commit}:./{path}")


def current_adapter() -> str:
    """Return DVC's hash of the adapter that lies in models/adapter.

    Raises:
        Mistake: It is not what code, data and parameters would make now.
    """
    if list_outdated("train"):
        raise Mistake(f"{ADAPTER}: not what code, data and {PARAMS} make now; `dvc repro` brings it up to date")
    return adapter_in(LOCK.read_text(encoding="utf-8"))


def list_outdated(*stages: str) -> list[str]:
    """List the stages, of these or of all, whose results are not what dvc.lock says, or would be made anew."""
    command = [sys.executable, "-m", "dvc", "status", "--json", *stages]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Mistake(f"dvc status: {ran.stderr.strip()}")
    return list(json.loads(ran.stdout))


def adapter_in(lock: str) -> str:
    """Return DVC's hash of the adapter that a dvc.lock speaks of."""
    return outs_in(lock)[ADAPTER]


def outs_in(lock: str) -> dict[str, str]:
    """Return DVC's hashes of all that stages made, by path, as a dvc.lock has them."""
    stages = YAML(typ="safe").load(lock)["stages"].values()
    return {out["path"]: out["md5"] for stage in stages for out in stage.get("outs", [])}


def read_metrics(run: Run, file: str) -> dict[str, Any]:
    """Read metrics/<file>.json of a commit."""
    return parse_metrics(read(run, METRICS / f"{file}.json"))


def read_metric(run: Run, metric: Metric) -> float:
    """Read a number of a commit.

    Raises:
        Mistake: It is not there.
    """
    try:
        return flatten(read_metrics(run, metric.file))[metric.name]
    except KeyError:
        raise Mistake(
            f"{METRICS}/{metric.file}.json of {run.name}: expected {metric.name}, which is not there"
        ) from None


def read_arithmetic(run: Run, file: str = NLL.file) -> str:
    """Return what a commit's tuned model was scored in, such as `fp32 on cpu`; nothing where it does not say.

    Args:
        file: Of its metrics: `ANSWERING` tells what it answered in, which may be another.
    """
    try:
        found = read_metrics(run, file)
        return arithmetic_of(found.get("settings", found)["precision"])
    except (Mistake, KeyError):
        return ""


def read_flat_params(run: Run) -> dict[str, Any]:
    """Read the parameters of a commit, by their names in full, such as `lora.r`."""
    return flatten(YAML(typ="safe").load(read(run, PARAMS)))


def flatten(node: Any, name: str = "") -> dict[str, Any]:
    """Name the leaves of nested dictionaries and lists."""
    if not isinstance(node, dict | list):
        return {name: node}
    items = node.items() if isinstance(node, dict) else enumerate(node)
    return {full: leaf for key, child in items for full, leaf in flatten(child, f"{name}.{key}".lstrip(".")).items()}


def count_judged(test_documents: str) -> int:
    """Count the commits of all branches, and the experiments, whose models were judged by these very documents.

    Results that repeat an earlier commit's count once. It is the least that was tried: what was never committed, or was
    removed, nobody can count.

    Args:
        test_documents: metrics/documents.csv, as one of them has it.
    """
    known = sorted(read_losses(test_documents)["id"])
    everywhere = ("--full-history", "--branches", "--remotes", "--tags", "HEAD")
    commits = git("rev-list", *everywhere, "--", str(LOSSES)).split()
    judged = set()
    for run in [Run(commit, commit) for commit in commits] + list_experiments():
        try:
            table = read_losses(read(run, LOSSES)).set_index("id").sort_index()
        except (Mistake, KeyError, ValueError):  # not there, or of another shape
            continue
        if list(table.index) == known and "tuned" in table:
            judged.add(tuple(table["tuned"].round(3)))  # a run repeated elsewhere differs in later digits
    return len(judged)


def changed_params(before: Run, after: Run) -> dict[str, Change]:
    """Return the parameters that differ."""
    old, new = read_flat_params(before), read_flat_params(after)
    names = [*old, *(name for name in new if name not in old)]
    changes = {name: Change(old.get(name), new.get(name)) for name in names}
    return {name: change for name, change in changes.items() if change.before != change.after}


def seed_noise(baseline: Run) -> float | None:
    """Return how far two runs of a commit may differ by their seeds alone, in nats per token of the tuned model.

    That is half of a 95 % interval: Student's t for the number of seeds, times their standard deviation, times the
    square root of two. None where `commands.seeds` has not run two of that commit. A seed counts once, whatever its
    experiments are called.
    """
    losses = [read_metric(run, NLL) for run in runs_by_seed(baseline)]
    return chance(losses) if len(losses) > 1 else None


def runs_by_seed(baseline: Run) -> list[Run]:
    """List what `commands.seeds` ran of a commit's own parameters, one run a seed, in the commit's own arithmetic."""
    runs = [run for run in list_experiments(baseline.commit) if re.fullmatch(r"seed-\d+", run.name)]
    same = [run for run in runs if changed_params(baseline, run).keys() <= {"train.seed"}]
    same = [run for run in same if read_arithmetic(run) == read_arithmetic(baseline)]
    return list({read_flat_params(run)["train.seed"]: run for run in same}.values())


def chance(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the difference of two draws like these."""
    return float(t.ppf(0.975, len(values) - 1) * 2**0.5 * statistics.stdev(values))


def compare_recipe(baseline: Run) -> tuple[Interval, int] | None:
    """Return by what factor a commit's recipe changes perplexity, for any documents and seeds, and its number of seeds.

    None where `commands.seeds` has not run two of that commit, or there are too few documents.
    """
    tables = [read_losses(read(run, LOSSES)).set_index("id").sort_index() for run in runs_by_seed(baseline)]
    if len(tables) < 2 or not all(table["tokens"].equals(tables[0]["tokens"]) for table in tables):
        return None
    sums = [sum_units(table, (table["tuned"] - table["base"]) * table["tokens"]) for table in tables]
    if len(sums[0]) < FEWEST_UNITS:
        return None
    found = over_seeds(np.stack([table["gain"] for table in sums]), sums[0]["tokens"].to_numpy())
    return Interval(*map(math.exp, found)), len(tables)


def describe_recipe(baseline: Run) -> str | None:
    """Put what `compare_recipe` finds in a line."""
    if (found := compare_recipe(baseline)) is None:
        return None
    ratio, seeds = found
    verdict = ratio.verdict(none=1.0, more_is_better=False)
    return (
        f"this recipe, of {seeds} seeds: base to tuned: perplexity times {ratio.value:.4f} (95 % interval over "
        f"documents and seeds: {ratio.bounds()}): {verdict}"
    )


def compare_runs(before: Run, after: Run, params: CompareParams) -> LossComparison | None:
    """Compare the tuned models of two commits on the documents that both scored; None where these differ.

    Commits from before `prepare` left equal documents out may have some. Their texts are not in Git, but documents of
    as many tokens and, to four decimals, of the same loss under every arm of both commits are equal: one counts.
    """
    old, new = (read_losses(read(run, LOSSES)).set_index("id").sort_index() for run in (before, after))
    tokens = old["tokens"]
    if not tokens.equals(new["tokens"]):
        return None
    gain = (new["tuned"] - old["tuned"]) * tokens
    first = ~pd.concat([table.drop(columns="title").round(4) for table in (old, new)], axis=1).duplicated()
    sums = sum_units(old[first], gain[first])
    return compare_losses(sums["tokens"].to_numpy(), sums["gain"].to_numpy(float), params)


def sum_units(table: pd.DataFrame, gain: pd.Series) -> pd.DataFrame:
    """Add up tokens and gains of documents that belong together: of a group, or else of a document alone."""
    group = table.get("group", pd.Series(dtype=str)).reindex(table.index).fillna("")
    unit = group.where(group != "", "\0" + table.index)
    return pd.DataFrame({"tokens": table["tokens"], "gain": gain}).groupby(unit).sum()
