"""Results read from Git: experiments are found, compared with care, and ranked; and a commit is run again or not."""

import json
import subprocess
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from support.comparing import PARAMS, scores
from support.tasks import right

from commands.best import report
from commands.diff import tell
from commands.experiments import tabulate
from commands.reproduce import compare_numbers
from stages.compare import list_documents
from stages.lib.history import (
    WORKSPACE,
    Run,
    changed_params,
    compare_runs,
    describe_recipe,
    find_run,
    flatten,
    list_tries,
    runs_by_seed,
    seed_noise,
)
from stages.lib.params import Mistake
from stages.lib.scoring.comparison import compare
from stages.lib.scoring.document_scores import write_losses
from stages.lib.scoring.task_comparison import lay_out
from stages.lib.scoring.task_history import judge_tasks
from stages.lib.scoring.task_scores import read_scores, to_csv
from stages.lib.verdicts import describe, judge, judge_answers, weigh

LOSSES = (3.0, 3.2, 3.1, 3.3, 2.9, 3.4, 3.5, 2.8)  # of documents of 100 tokens


@pytest.fixture(params=[".", "one project/of many"])
def repository(request, tmp_path, monkeypatch):
    """A repository, or a folder in one, with results in its commits, and experiments as DVC keeps them."""
    (tmp_path / request.param).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path)
    git("init", "-q", "-b", "main")
    monkeypatch.chdir(tmp_path / request.param)
    git("config", "user.name", "Tester")
    git("config", "user.email", "tester@example.org")
    commit(r=8, shift=0.0)
    return tmp_path


def git(*command: str) -> str:
    return subprocess.run(["git", *command], check=True, capture_output=True, text=True).stdout.strip()


def commit(
    r: int,
    shift: float,
    tokens: int = 100,
    seed: int = 1,
    times: int = 1,
    validated: float | None = None,
    decider: str = "",
    arithmetic: str = "fp32 on cpu",
    answering: str = "fp32 on cpu",
) -> str:
    """Commit the results of a rank, whose losses are shifted, a little more on some documents than on others.

    Each document is there so many times; how it was batched moves its loss by a millionth.
    """
    losses = [loss + shift * (1 + 0.1 * (number % 3)) for number, loss in enumerate(LOSSES)]
    rows = [
        f"{number}-{copy},t{copy},{tokens},3,3,{loss + copy / 1e6:.6f}"
        for number, loss in enumerate(losses)
        for copy in range(times)
    ]
    nll = sum(losses) / len(losses)
    files = {
        "params.yaml": f"lora:\n  r: {r}\ntrain:\n  seed: {seed}\nanswers:\n  metric: '{decider}'\n",
        "metrics/documents.csv": "\n".join(["id,title,tokens,full,base,tuned", *rows]),
        "metrics/evaluate/tuned.json": json.dumps(
            {
                "document": {"nll": nll, "bits_per_byte": nll / 2},
                "precision": f"nf4 (79% of the weights), computed in {arithmetic}",
                "validation": {
                    "bits_per_byte": 2 + (shift if validated is None else validated),
                    **dict.fromkeys(("documents", "tokens", "bytes"), tokens),
                },
            }
        ),
        "metrics/generate/tuned.json": json.dumps({"settings": {"precision": f"nf4, computed in {answering}"}}),
        "metrics/compare.json": json.dumps({"base_to_tuned": {"perplexity_ratio": 1 + shift}, "in_words": "in words"}),
    }
    for name, text in files.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    git("add", "-A")
    git("commit", "-qm", "results", "--allow-empty")
    return git("rev-parse", "HEAD")


def best() -> list[tuple[str, ...]]:
    """The rows of what `make best` prints."""
    rows = report(list_tries(), PARAMS).partition("\n\n")[0].splitlines()[2:]
    return [tuple(cell.strip() for cell in row.strip("|").split("|")) for row in rows]


def sentence() -> str:
    """What `make best` says below its table."""
    return " ".join(report(list_tries(), PARAMS).partition("\n\n")[2].split())


def experiment(name: str, **results) -> None:
    """Keep results under the name that DVC gives an experiment, and go back."""
    baseline = git("rev-parse", "HEAD")
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/{name}", commit(**results))
    git("reset", "-q", "--hard", baseline)


def test_the_best_on_validation_is_named_and_judged_by_the_test_documents(repository):
    experiment("r16", r=16, shift=-0.2)
    experiment("r4", r=4, shift=0.1)
    experiment("lucky", r=2, shift=-0.5, validated=0.05)  # on the test documents, by which nobody chooses
    told = best()
    assert [row[0] for row in told] == ["r16", "HEAD", "lucky", "r4"]
    assert told[0] == ("r16", "HEAD", "lora.r: 16", "1.8000")
    assert "best: r16, chosen on validation" in sentence() and "p = 0.0078): better;" in sentence()  # 2 / 2^8
    assert "`dvc exp apply r16` takes it" in sentence()
    assert "have judged 4 results at least" in sentence()
    experiment("copy", r=16, shift=-0.2)  # the same results once more
    assert "have judged 4 results at least" in sentence()


def test_answers_to_validation_conversations_rank_first(repository):
    def graded(name: str, share: float, shift: float) -> None:
        Path("metrics/answers.json").write_text(json.dumps([{"validation": {"answers": 8, "exact_match": share}}]))
        experiment(name, r=len(name), shift=shift, decider="exact_match")

    Path("metrics/answers.json").write_text(json.dumps([{"validation": {"answers": 8, "exact_match": 0.25}}]))
    commit(r=8, shift=0.0, decider="exact_match")
    graded("right", 0.75, 0.1)
    graded("sure", 0.5, -0.2)
    graded("surest", 0.5, -0.3)
    experiment("otherwise", r=3, shift=-0.5, decider="token_f1")
    told = best()
    assert [row[0] for row in told] == ["right", "surest", "sure", "HEAD", "otherwise"]
    assert told[0][-2:] == ("75.0%", "2.1000") and told[-1][-2:] == ("other documents",) * 2
    assert "best: right, chosen on validation" in sentence()


def test_other_validation_documents_do_not_rank(repository):
    experiment("fewer", r=8, shift=-0.5, tokens=50)
    experiment("r16", r=16, shift=-0.2)
    assert best()[-1] == ("fewer", "HEAD", "", "other documents") and "best: r16" in sentence()


def test_what_is_not_better_is_not_offered(repository):
    experiment("r16", r=16, shift=0.1, validated=-0.1)
    assert "best: r16" in sentence() and "worse" in sentence() and "exp apply" not in sentence()


def test_without_validation_documents_nothing_is_ranked_and_the_remedy_named(repository):
    Path("metrics/evaluate/tuned.json").write_text(json.dumps({"document": {"nll": 3.0}}))
    git("commit", "-qam", "old")
    experiment("r16", r=16, shift=0.1)
    with pytest.raises(Mistake, match=r"let prepare\.validation_fraction leave some, and run again"):
        report(list_tries(), PARAMS)


def test_documents_and_groups_have_the_names_they_have(repository):
    """NA and null are names, as numbers are."""
    names = ("NA", "NA", "null", "None", "7", "nan")
    for shift in (0.0, -0.1):
        lines = [f"{n},t,100,3,3,{3 + shift * (1 + n / 10)},{name}" for n, name in enumerate(names)]
        Path("metrics/documents.csv").write_text("\n".join(["id,title,tokens,full,base,tuned,group", *lines]))
        git("commit", "-qam", "names")
    assert compare_runs(find_run("HEAD~1"), find_run("HEAD"), PARAMS).documents == 5


def test_what_was_computed_otherwise_is_neither_ranked_nor_judged(repository):
    """In bf16 on a GPU a 4-bit model of 135 million parameters has 1.4 % more perplexity than in fp32 on a CPU."""
    experiment("gpu", r=8, shift=-0.5, arithmetic="bf16 on cuda")
    experiment("r16", r=16, shift=-0.2)
    assert best()[-1] == ("gpu", "HEAD", "bf16 on cuda", "other arithmetic") and "best: r16" in sentence()
    assert "HEAD was computed in fp32 on cpu, 1 of these in another arithmetic, and rounding alone" in sentence()
    (told,) = judge(find_run("HEAD"), find_run("gpu"), PARAMS)
    assert told.startswith(
        "No verdict on losses. Before was computed in fp32 on cpu, after in bf16 on cuda, and rounding"
    )
    assert "computed in" not in judge(find_run("HEAD"), find_run("r16"), PARAMS)[0]
    graded = "id,unit,base,tuned\n" + "".join(f"{number},{number},0,{{}}\n" for number in range(8))
    for name, score in (("fp32", 0), ("bf16", 1)):
        Path("metrics/answers.csv").write_text(graded.format(*[score] * 8))
        experiment(name, r=8, shift=0, decider="exact_match", answering=f"{name} on cpu")
    assert judge_answers(find_run("fp32"), find_run("fp32"), PARAMS)
    (told,) = judge_answers(find_run("fp32"), find_run("bf16"), PARAMS)  # whose losses were computed alike
    assert told.startswith(
        "No verdict on answers. Before was computed in fp32 on cpu, after in bf16 on cpu, and rounding"
    )
    assert not judge(find_run("fp32"), find_run("bf16"), PARAMS)[0].startswith("No verdict")


def test_seeds_of_another_arithmetic_are_no_noise(repository):
    for seed, arithmetic in enumerate(["fp32 on cpu", "bf16 on cuda", "fp32 on cpu", "bf16 on cuda"], start=1):
        experiment(f"seed-{seed}", r=8, shift=seed / 100, seed=seed, arithmetic=arithmetic)
    head = find_run("HEAD")
    assert sorted(run.name for run in runs_by_seed(head)) == ["seed-1", "seed-3"]
    experiment("gpu", r=8, shift=0.5, arithmetic="bf16 on cuda")
    git("checkout", "-q", find_run("gpu").commit)
    assert seed_noise(find_run("HEAD")) is None and seed_noise(head) is not None


def test_results_that_are_not_there_are_said_to_be_missing(repository):
    for file in ("metrics/documents.csv", "metrics/evaluate/tuned.json"):
        Path(file).unlink()
    with pytest.raises(Mistake, match=r"^metrics/documents.csv: not there yet; `make repro` makes it$"):
        judge(find_run("HEAD"), WORKSPACE, PARAMS)


def test_where_nothing_is_better_on_validation_nothing_is_judged(repository):
    experiment("r4", r=4, shift=0.1)
    assert sentence() == "best: HEAD, what is committed"


def test_without_experiments_there_is_no_best(repository):
    for table in (partial(report, params=PARAMS), tabulate):
        with pytest.raises(Mistake, match="no experiments yet"):
            table(list_tries())


def test_other_documents_are_not_compared(repository):
    before = find_run("HEAD")
    commit(r=16, shift=-0.2, tokens=50)
    after = find_run("main")
    assert compare_runs(before, after, PARAMS) is None
    assert "do not compare" in judge(before, after, PARAMS)[0]
    assert changed_params(before, after) == {"lora.r": (8, 16)}


def test_git_tells_what_compare_found(repository):
    """Two runs, whose tuned models `compare` would be given as two arms; of six digits 1e-9 would be left."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(100, 1000, 30)
    arms = [scores(rng.normal(3.5, 0.5, 30), tokens).assign(id=[f"{n:02}" for n in range(30)]) for _ in "ab"]
    runs = []
    for tuned in arms:
        write_losses(list_documents({"full": arms[0], "base": arms[0], "tuned": tuned}))
        git("commit", "-qam", "results")
        runs.append(Run("tuned", git("rev-parse", "HEAD")))
    found, wanted = compare_runs(*runs, PARAMS), compare(*arms, PARAMS)
    assert found.perplexity_ratio == pytest.approx(wanted.perplexity_ratio, rel=1e-12)
    assert found.nll_difference == pytest.approx(wanted.nll_difference, rel=1e-12)
    assert (found.p_value, found.documents_better) == (wanted.p_value, wanted.documents_better)


def test_equal_documents_of_old_commits_count_once(repository):
    """Eight documents in 24 rows are eight units: the p-value of all gains alike is 2 / 2^8, and not 2 / 2^24."""
    before = find_run("HEAD")
    commit(r=16, shift=-0.2)
    once = compare_runs(before, find_run("HEAD"), PARAMS)
    commit(r=8, shift=0.0, times=3)
    before = find_run("HEAD")
    commit(r=16, shift=-0.2, times=3)
    found = compare_runs(before, find_run("HEAD"), PARAMS)
    assert found.perplexity_ratio == pytest.approx(once.perplexity_ratio)
    assert found.documents == once.documents == 8 and found.p_value == once.p_value == 2 / 2**8


def test_a_difference_is_weighed_against_seeds(repository):
    before = find_run("HEAD")
    assert seed_noise(before) is None and "tells" in weigh(-0.01, None)
    for seed, shift in enumerate((0.0, 0.01, -0.01), start=1):
        experiment(f"seed-{seed}", r=8, shift=shift, seed=seed)
    noise = seed_noise(before)
    experiment("seed-4", r=8, shift=0.0, seed=1)  # the first under another name: no fourth seed
    experiment("seed-5", r=64, shift=5.0, seed=5)  # of another recipe
    assert seed_noise(before) == noise
    assert "this recipe, of 3 seeds: base to tuned: perplexity times" in describe_recipe(before)
    assert noise == pytest.approx(4.3027 * 2**0.5 * 0.01 * 1.0875, rel=1e-3)  # t of two degrees; mean of the shifts
    assert weigh(-2 * noise, noise).startswith("It is more than") and "no more than" in weigh(noise / 2, noise)


def answer(right: str, decider: str = "exact_match") -> Run:
    """Commit eight graded answers, of which some are right."""
    rows = [f"{number},{number},0.0,{float(mark == '+')}" for number, mark in enumerate(right)]
    Path("metrics/answers.csv").write_text("\n".join(["id,unit,base,tuned", *rows]) + "\n")
    Path("metrics/answers.json").write_text(json.dumps({"in_words": "in words"}))
    params = Path("params.yaml").read_text().partition("answers:")[0]
    Path("params.yaml").write_text(f"{params}answers:\n  metric: {decider}\n")
    git("add", "-A")
    git("commit", "-qm", "answers")
    return find_run("HEAD")


def test_answers_of_two_commits_are_compared_in_pairs(repository):
    texts = find_run("HEAD")
    before, after, otherwise = answer("+-------"), answer("++++++++"), answer("++++++++", "token_f1")
    (told,) = judge_answers(before, after, PARAMS)
    assert told.startswith("**The tuned model's answers: better.** Exact match 12.5% to 100.0% of 8, by +87.5 points (")
    assert "7 became better, 0 worse" in told and describe(after)[0] == "After, this adapter: in words."
    assert "cannot tell" in judge_answers(answer("+++-----"), answer("++++----"), PARAMS)[0]
    assert "answers: the same" in judge_answers(after, answer("++++++++"), PARAMS)[0]
    assert "graded otherwise" in judge_answers(before, otherwise, PARAMS)[0]
    assert judge_answers(texts, after, PARAMS) == []


def test_experiments_of_all_commits_stand_in_the_tables_and_each_try_once(repository):
    experiment("early", r=2, shift=-0.3)
    experiment("again", r=4, shift=-0.1)
    earlier = git("rev-parse", "HEAD")
    commit(r=8, shift=-0.01)
    experiment("r4", r=4, shift=-0.1)  # with the results of `again`
    experiment("copy", r=8, shift=-0.01)  # of HEAD itself
    assert [row[:3] for row in best()] == [
        ("early", earlier[:7], "lora.r: 2"),
        ("r4", "HEAD", "lora.r: 4"),
        ("HEAD", "", ""),
    ]
    rows = tabulate(list_tries()).splitlines()
    assert [row.split()[1] for row in rows[2:5]] == ["HEAD", "r4", "early"]
    early = git("rev-parse", f"refs/exps/{earlier[:2]}/{earlier[2:]}/early")
    assert f"`git cherry-pick {early[:7]}`, then `make settle`" in sentence() and "exp apply" not in sentence()
    experiment("elsewhere", r=4, shift=-0.10004)  # the same but for digits that another machine rounds otherwise
    assert [row[0] for row in best()] == ["early", "elsewhere", "HEAD"]


def test_an_experiment_without_results_stands_in_no_table(repository):
    experiment("r4", r=4, shift=-0.1)
    git("rm", "-q", "metrics/documents.csv")
    git("commit", "-qm", "nothing")
    baseline = git("rev-parse", "HEAD~1")
    git("update-ref", f"refs/exps/{baseline[:2]}/{baseline[2:]}/failed", "HEAD")
    git("reset", "-q", "--hard", baseline)
    assert [row[0] for row in best()] == ["r4", "HEAD"]


def test_the_difference_of_the_workspace_fits_a_screen_and_what_decides_comes_first(repository):
    before = answer("+-------")
    many = "".join(f"  p{number}: {number}\n" for number in range(30))
    Path("params.yaml").write_text(Path("params.yaml").read_text() + f"other:\n{many}")
    Path("metrics/answers.csv").write_text(Path("metrics/answers.csv").read_text().replace(",0.0\n", ",1.0\n"))
    Path("metrics/answers.json").write_text(json.dumps([{"exact_match": {"tuned": 1.0}, "in_words": "in words"}]))
    told = tell(before, find_run("workspace"), PARAMS)
    lines = told.splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) <= 30
    assert lines[0] == f"HEAD ({before.commit[:7]}) -> workspace" and "22 more" in told
    first = next(number for number, line in enumerate(lines) if line.startswith("| metric")) + 2
    assert lines[first].startswith("| answers, exact match") and "100.0%" in lines[first]
    assert "ratio" in lines[first + 1] or "over base" in lines[first + 1]
    assert told.index("The tuned model's answers: better.") < told.index("The tuned model gives every")
    assert "not run yet" not in told


def test_parameters_that_were_edited_and_not_run_are_named(repository):
    Path("dvc.lock").write_text("stages: {check: {params: {params.yaml: {lora: {r: 8}, train: {seed: 1}}}}}")
    answer("++++++++")
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("r: 8", "r: 9"))
    assert "not run yet: lora.r;" in tell(find_run("HEAD"), find_run("workspace"), PARAMS)


def tasks(
    tuned: str,
    adapter: str,
    measured: str = "",
    task: str = "t",
    harness: str = "1",
    target: str = "",
    example: str = "",
    arithmetic: str = "fp32 on cpu",
) -> Run:
    """Commit an adapter, and what it, or the one measured instead, makes of a task that the base model gets wrong."""
    arms = {"base": right("-" * len(tuned), task), "tuned": right(tuned, task)}
    for sample in [sample for arm in arms.values() for sample in arm["samples"][task]]:
        sample["target"] += target
        sample["arguments"] = [(example + asked, choice) for asked, choice in sample["arguments"]]
    found = read_scores(arms)
    laid = lay_out(found, PARAMS, adapter=measured or adapter, harness=harness, seeds=[1], arithmetic=arithmetic)
    Path("metrics/tasks.json").write_text(json.dumps(laid))
    Path("metrics/tasks.csv").write_text(to_csv(found))
    outs = [{"path": "metrics/train.json", "md5": "0"}, {"path": "models/adapter", "md5": adapter}]
    Path("dvc.lock").write_text(json.dumps({"stages": {"train": {"outs": outs}}}))
    git("add", "-A")
    git("commit", "-qm", "tasks", "--allow-empty")
    return find_run("HEAD")


def test_tasks_of_two_commits_are_compared_in_pairs(repository):
    nothing = find_run("HEAD")
    before, after = tasks("--------", "1.dir"), tasks("+++++++-", "2.dir")
    told = judge_tasks(before, after, PARAMS).splitlines()
    assert told[0].startswith("| task | metric | before | after | change (95 % interval)")
    assert told[2].startswith("| t | acc | 0.0000 | 0.8750 | +0.8750 (") and told[2].endswith(
        "| 7 | 0 | 8 | 0.0156 | 0.0156 | better |"
    )
    assert told[4:7] == ["After, this adapter:", "", told[0].replace("before | after", "base | tuned")]
    assert judge_tasks(nothing, after, PARAMS).splitlines() == told[4:]
    assert judge_tasks(after, after, PARAMS).splitlines() == told[4:]  # one adapter is not two
    assert judge_tasks(before, nothing, PARAMS) == judge_tasks(nothing, nothing, PARAMS) == ""


def test_tasks_that_another_adapter_did_are_not_shown(repository):
    before, after, stale = tasks("--------", "1.dir"), tasks("++++++++", "2.dir"), tasks("++++++++", "3.dir", "2.dir")
    assert judge_tasks(before, stale, PARAMS) == ""
    told = judge_tasks(stale, after, PARAMS)
    assert told.startswith("After, this adapter:") and "before" not in told


@pytest.mark.parametrize(
    "other",
    [
        {"tuned": "+++++++++"},
        {"task": "u"},
        {"harness": "2"},
        {"target": "x"},
        {"example": "x"},
        {"arithmetic": "bf16 on cuda"},
    ],
)
def test_tasks_that_asked_otherwise_are_not_compared(repository, other):
    before, after = tasks("--------", "1.dir"), tasks(**{"tuned": "++++++++", "adapter": "2.dir"} | other)
    told = judge_tasks(before, after, PARAMS)
    assert told.startswith("The two were not asked the same, or not in one arithmetic that both record.\n\nAfter, this")
    assert "before" not in told


def test_an_unknown_revision_is_said_in_a_line(repository):
    with pytest.raises(Mistake, match=r"^git rev-parse --verify: fatal: Needed a single revision$"):
        find_run("nothing")


def test_numbers_come_out_again_nearly_or_not():
    before = flatten({"a": 1.0, "b": [1.0, "x"], "c": True, "d": 2}, "m")
    after = flatten({"a": 1.0, "b": [1.0005, "y"], "c": True}, "m") | {"cost/s.seconds": 3}
    table, different = compare_numbers(before, after)
    measured = {"tasks.tasks.t.acc.tuned": 1.0}  # by no stage: it would be equal whatever the stages gave
    assert compare_numbers(before | measured, after | measured) == (table, different)
    assert different == 2 and table.endswith("5 metrics: 2 equal, 1 within tolerance, 2 different")
    assert "| m.b.1 | x | y | different |" in table and "| m.d | 2 | None | different |" in table
