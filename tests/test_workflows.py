"""What GitHub runs: workflows that are well formed, whose shell is sound, and of which only one may write."""

import re
import shutil
import subprocess

import pytest
from conftest import REPOSITORY

from stages.lib.params import read_yaml

WORKFLOWS = {path.stem: read_yaml(path) for path in sorted((REPOSITORY / ".github/workflows").glob("*.yml"))}
SHELL = {
    f"{name}, {job}: {step.get('name', number)}": step["run"]
    for name, workflow in WORKFLOWS.items()
    for job, found in workflow["jobs"].items()
    for number, step in enumerate(found["steps"])
    if "run" in step
}


@pytest.mark.parametrize("step", SHELL)
def test_the_shell_is_sound(step):
    script = re.sub(r"\$\{\{.*?\}\}", "expression", SHELL[step])
    check = ["shellcheck", "-s", "bash", "-"] if shutil.which("shellcheck") else ["bash", "-n"]
    ran = subprocess.run(check, input=script, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_what_runs_code_of_a_pull_request_may_not_write():
    assert WORKFLOWS["check"]["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in WORKFLOWS["check"]["jobs"].values())
    writing = WORKFLOWS["comment"]
    assert writing["on"] == {"workflow_run": {"workflows": ["check"], "types": ["completed"]}}
    assert not any("checkout" in step.get("uses", "") for job in writing["jobs"].values() for step in job["steps"])


def test_no_shell_is_made_of_what_others_write():
    """Titles, branches and bodies of pull requests are strangers' text: they may reach the shell as variables alone."""
    for step, script in SHELL.items():
        for expression in re.findall(r"\$\{\{(.*?)\}\}", script):
            assert expression.strip() == "github.event.pull_request.number", step
