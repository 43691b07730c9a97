"""Checkpoints: a run that is stopped goes on, and ends bit for bit as if it had not been."""

import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from conftest import REPOSITORY, Project

from stages.lib.params import Mistake
from stages.lib.training.checkpoints import Checkpoints


@pytest.mark.slow
@pytest.mark.parametrize("conversations", [False, True])
def test_a_run_that_is_stopped_in_every_way_ends_as_if_it_had_not_been(conversations, tmp_path):
    whole, stopped = (Project(tmp_path / name, conversations=conversations) for name in ("whole", "stopped"))
    printed = whole.run()
    assert "going on" not in printed and "[transformers]" not in printed  # nor does a library complain

    def little_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, 500_000))

    printed = stopped.run(expect=1, preexec_fn=little_disk)
    assert "checkpoint-1: cannot be written: " in printed and "Traceback" not in printed
    assert not stopped.whole()
    stopped.stop_after(3, signal.SIGKILL)
    printed = stopped.stop_after(7, signal.SIGINT)
    assert "going on from models/checkpoints/" in printed
    assert "stopped; run the same again to go on from the last checkpoint" in printed and "Traceback" not in printed
    stopped.stop_after(12, signal.SIGKILL)
    newest = stopped.whole()[-1]
    weights = newest / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    printed = stopped.run()
    assert f"{newest.relative_to(stopped.folder)}: is damaged; going on from the one before it" in printed
    assert stopped.results() == whole.results()
    assert {"models/adapter/adapter_model.safetensors", "metrics/train.json"} < set(whole.results())
    assert not any(project.whole() for project in (stopped, whole))


@pytest.fixture
def checkpoints(tmp_path) -> Checkpoints:
    """Two whole checkpoints of a run, of steps 9 and 10."""
    found = Checkpoints("mine", tmp_path)
    for step in (9, 10):
        folder = found.folder / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        (folder / "trainer_state.json").write_text('{"best_model_checkpoint": null}')
        (folder / "weights").write_bytes(bytes(step))
        found.seal(step, seconds=step / 2)
    return found


def test_the_newest_whole_checkpoint_is_taken(checkpoints):
    assert checkpoints.newest() == (checkpoints.folder / "checkpoint-10", 5.0)


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("weights", b"short", "is damaged"),
        ("weights", None, "is damaged"),
        ("more", b"", "is damaged"),
        ("seal.json", None, "was never finished"),
        ("seal.json", b'{"run": "mi', "seal.json is damaged"),
        ("seal.json", b'{"run": "other", "seconds": 1, "files": {}}', "belongs to another run, other"),
        ("seal.json", b'{"run": "mine", "seconds": 1, "files": {}}', "is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused_and_the_one_before_it_used(
    checkpoints, file, content, reason, capsys
):
    path = checkpoints.folder / "checkpoint-10" / file
    path.unlink() if content is None else path.write_bytes(content)
    assert checkpoints.newest() == (checkpoints.folder / "checkpoint-9", 4.5)
    assert capsys.readouterr().out == f"{path.parent}: {reason}; going on from the one before it\n"
    assert not path.parent.exists()


def test_a_checkpoint_is_refused_without_the_best_one_it_would_return_to(checkpoints, capsys):
    best = checkpoints.folder / "checkpoint-9"
    (checkpoints.folder / "checkpoint-10/trainer_state.json").write_text(f'{{"best_model_checkpoint": "{best}"}}')
    checkpoints.seal(10, seconds=5.0)
    assert checkpoints.newest() == (checkpoints.folder / "checkpoint-10", 5.0)
    (best / "weights").unlink()
    assert checkpoints.newest() is None
    assert f"checkpoint-10: needs {best}, which is not whole" in capsys.readouterr().out


def test_only_the_newest_and_the_best_are_kept(checkpoints):
    for step in (11, 12, 13):
        shutil.copytree(checkpoints.folder / "checkpoint-10", checkpoints.folder / f"checkpoint-{step}")
        best = checkpoints.folder / "checkpoint-10"
        (checkpoints.folder / f"checkpoint-{step}/trainer_state.json").write_text(
            f'{{"best_model_checkpoint": "{best}"}}'
        )
        checkpoints.seal(step, seconds=1.0)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
        "checkpoint-10",
        "checkpoint-12",
        "checkpoint-13",
    ]


@pytest.mark.parametrize("run", ["mine", "other"])
def test_one_process_at_a_time_trains_in_a_folder(run, checkpoints, tmp_path):
    """Two runs would write into one plots/train."""
    checkpoints.hold()
    with pytest.raises(Mistake, match="another process is training here"):
        Checkpoints(run, tmp_path).hold()


def test_another_run_does_not_see_it(checkpoints, tmp_path):
    assert Checkpoints("other", tmp_path).newest() is None


# A stage as DVC starts it, by a process of another name: started, it says 1 and waits.
STAGE = "import time; time.sleep(float({wait})); import stages.lib.training.processes as p; p.die_with_dvc()"
STARTER = """
import os, subprocess
subprocess.run([*os.environ["SHELL_WORDS"].split(), os.environ["COMMAND"]], env=os.environ | {"DVC_STAGE": "train"})
"""


def start_stage(wait: float, shell: str) -> subprocess.Popen:
    code = f"{STAGE.format(wait=wait)}; print(1, flush=True); time.sleep(60)"
    command = f"{sys.executable} -c '{code}'" + ("; true" if shell == "sh" else "")  # which keeps the shell alive
    environment = os.environ | {"COMMAND": command, "SHELL_WORDS": f"{shell} -c", "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", STARTER],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )


def assert_ends(parent: subprocess.Popen, *said: bytes) -> None:
    """Neither shell nor stage is left: a pipe ends when nobody holds its other end."""
    start = time.monotonic()
    assert parent.stdout.read() == b""
    assert time.monotonic() - start < 30
    assert all(words in parent.stderr.read() for words in said)


@pytest.mark.parametrize("shell", ["sh", "bash"])  # one that stays beside the stage, one that becomes it
def test_a_stage_dies_with_the_dvc_that_started_it(shell):
    with start_stage(0, shell) as parent:
        assert parent.stdout.readline() == b"1\n"
        time.sleep(1.5)
        assert psutil.Process(parent.pid).children()  # alive and well
        parent.kill()
        assert_ends(parent)


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_a_stage_whose_dvc_was_gone_before_it_could_look_ends(shell):
    with start_stage(2, shell) as parent:
        while not psutil.Process(parent.pid).children():
            time.sleep(0.1)
        parent.kill()
        assert_ends(parent, b"the dvc that started this stage is gone")
