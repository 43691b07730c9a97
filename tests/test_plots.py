"""The page of plots in a real browser: of one commit and of two, of texts and of conversations, wide and narrow.

Needs Chromium, as Debian's package `chromium` installs it; skipped where there is none.
"""

import shutil
import subprocess
from pathlib import Path

import pandas as pd
import pytest
from conftest import REPOSITORY

from stages.lib.colours import COLOURS

ARMS = {"full": [3.0, 2.5], "base": [3.1, 2.6], "tuned": [2.9, 2.4]}
TABLES = {
    "metrics/answers.csv": {"id": ["a", "b"], "unit": [0, 1], "base": [0.0, 0.0], "tuned": [1.0, 0.0]},
    "metrics/documents.csv": {"id": ["a", "b"], "title": ["A", "B"], "tokens": [9, 7], "tuned_minus_base": [-0.2, 0.1]},
    "plots/eval_results.csv": {"arm": list(ARMS), "perplexity": [20.0, 21.0, 18.0]},
    "plots/training_loss.csv": {
        "step": [1, 2, 0, 2], "text": ["training"] * 2 + ["validation"] * 2, "loss": [3.0, 2.8, 3.1, 2.9]
    },
    "plots/calibration.csv": {"confidence_bin": [0.1, 0.9], **{arm: [0.1, 0.8] for arm in ARMS}},
    "plots/loss_by_context.csv": {"context_tokens": [1, 2], **ARMS},
    "plots/human.csv": {"of": [], "mean": []},
}  # fmt: skip
RESULT, DOCUMENTS, LOSS, CONTEXT, CONFIDENCE = (
    "Perplexity on held-out text (less is better)",
    "What tuning changed on each document",
    "Loss in training",
    "Loss by how much context a token has",
    "How often is a confident model right?",
)
ANSWERS, PEOPLE = "Score of the answers (more is better)", "Mean rating by people, 1 to 5 (more is better)"


class Project:
    """A clone of what Git has of plots, before anything ran in it: results, and no environment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("dvc.yaml", "params.yaml", ".dvc/config", ".dvc/.gitignore", ".dvc/plots"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
            copy(REPOSITORY / name, folder / name)
        for name, columns in TABLES.items():
            self.write(name, columns)
        for picture in ("answers", "calibration", "documents", "eval_results", "human", "loss_by_context"):
            shutil.copy(REPOSITORY / "plots/human.png", folder / f"plots/{picture}.png")
        self.run("git", "init", "-q")
        self.run("git", "add", "-A")
        self.run("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "results")

    def write(self, name: str, columns: dict) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        pd.DataFrame(columns).to_csv(self.folder / name, index=False)

    def run(self, *command: str, folder: Path | None = None) -> None:
        ran = subprocess.run(command, cwd=folder or self.folder, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture
def project(tmp_path):
    return Project(tmp_path / "project")


@pytest.fixture
def look(browser):
    """Open a page in a window of a width; whatever it says to a console or asks of a network fails the test."""
    contexts, complaints = [], []

    def open_page(folder: Path, width: int = 1280):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda ask: None if ask.url[:5] in ("file:", "data:") else complaints.append(ask.url))
        page.goto((folder / "index.html").as_uri())
        page.wait_for_function(
            "document.querySelectorAll('section svg.marks').length === document.querySelectorAll('h2').length"
        )
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert complaints == []


def titles(page) -> list[str]:
    return page.locator("h2").all_text_contents()


def test_one_revision_shows_each_thing_once_what_decides_first(project, look, tmp_path):
    project.run("dvc", "plots", "show", "-o", str(tmp_path / "shown"))
    page = look(tmp_path / "shown")
    assert titles(page) == [ANSWERS, RESULT, DOCUMENTS, LOSS, CONTEXT, CONFIDENCE]  # nobody has rated yet
    assert page.locator("img").count() == 0  # pictures show the same once more
    assert page.locator("#revisions").text_content() == "Revision: workspace"
    assert "workspace" not in page.locator("main").text_content()  # no legend of one


def test_texts_have_no_answers_and_ratings_are_shown_once_there_are_any(project, look, tmp_path):
    project.write("metrics/answers.csv", {"id": [], "unit": [], "base": [], "tuned": []})
    project.write("plots/human.csv", {"of": ["fluency, base", "fluency, tuned"], "mean": [3.0, 4.0]})
    project.run("dvc", "plots", "show", "-o", str(tmp_path / "shown"))
    assert titles(look(tmp_path / "shown")) == [RESULT, DOCUMENTS, PEOPLE, LOSS, CONTEXT, CONFIDENCE]


def test_two_revisions_are_told_apart_and_arms_keep_their_colours(project, look, tmp_path):
    project.write("plots/eval_results.csv", {"arm": list(ARMS), "perplexity": [20.0, 21.0, 15.0]})
    project.run("dvc", "plots", "diff", "HEAD", "-o", str(tmp_path / "shown"))
    page = look(tmp_path / "shown")
    assert page.locator("#revisions").text_content().split() == ["Revisions:", "workspace", "HEAD"]
    results = page.locator("section", has_text=RESULT)
    assert {"15 workspace", "18 HEAD"} <= {
        " ".join(text.split()) for text in results.locator("text").all_text_contents()
    }
    fills = results.locator(".mark-rect path").evaluate_all("paths => paths.map(path => path.getAttribute('fill'))")
    assert fills == [*COLOURS.values()] * 2
    lines = page.locator("section", has_text=CONTEXT).locator(".mark-line path")
    drawn = lines.evaluate_all(
        "paths => paths.map(p => [p.getAttribute('stroke'), p.getAttribute('stroke-dasharray')])"
    )
    assert len(drawn) == 6 and {tuple(line) for line in drawn} == {
        (colour, dash) for colour in COLOURS.values() for dash in ("1,0", "5,4")
    }


def test_a_revision_without_a_table_changes_no_ones_dashes(project, look, tmp_path):
    (project.folder / "plots/training_loss.csv").unlink()
    project.run("dvc", "plots", "diff", "HEAD", "-o", str(tmp_path / "shown"))
    lines = look(tmp_path / "shown").locator("section", has_text=LOSS).locator(".mark-line path")
    dashes = lines.evaluate_all("paths => paths.map(path => path.getAttribute('stroke-dasharray'))")
    assert set(dashes) == {"5,4"}  # HEAD's everywhere


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_cut_off(project, look, tmp_path, width):
    project.run("git", "branch", "an-experiment-of-rank-sixteen")
    project.run("dvc", "plots", "diff", "an-experiment-of-rank-sixteen", "-o", str(tmp_path / "shown"))
    page = look(tmp_path / "shown", width)
    inside = "at.left - svg.left, svg.right - at.right, at.top - svg.top, svg.bottom - at.bottom"
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    sides = page.locator("section svg.marks text").evaluate_all(
        "texts => texts.map(text => { const svg = text.closest('svg').getBoundingClientRect();"
        f"const at = text.getBoundingClientRect(); return [text.textContent, {inside}]; }})"
    )
    assert [side for side in sides if min(side[1:]) < -1] == []


def test_a_worktree_and_a_picture_of_ones_own_are_shown_too(project, look, tmp_path):
    shutil.copy(REPOSITORY / "plots/human.png", project.folder / "mine.png")
    pipeline = project.folder / "dvc.yaml"
    pipeline.write_text(pipeline.read_text() + "\nplots:\n  - mine.png\n")
    project.run("git", "add", "-A")
    project.run("git", "-c", "user.name=T", "-c", "user.email=t@example.org", "commit", "-qm", "mine")
    project.run("git", "worktree", "add", "-q", str(tmp_path / "tree"))
    project.run("dvc", "plots", "show", "-o", str(tmp_path / "shown"), folder=tmp_path / "tree")
    page = look(tmp_path / "shown")
    assert len(titles(page)) == 6 and page.locator("img").count() == 1
