"""What is published is what is here, all of it or nothing, with a card that says how good it is."""

import functools
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from support.hub import Fault, Repo
from support.uploads import KEPT, WritableHub

from commands.publish import list_files
from stages.lib.params import Mistake
from stages.lib.publishing.card import CARD
from stages.lib.publishing.upload import upload

OURS = b"---\nmade_of:\n  models/adapter: '1'\n---\nA card.\n"
NAME = "acme/thing"


@pytest.fixture
def hub(monkeypatch):
    """A Hub in whose name `acme` the token `hf_acme` may write; the client waits for nothing, and has no Xet."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("NO_PROXY", "*")
    for module in (huggingface_hub.lfs, huggingface_hub._commit_api):
        hasty = functools.partial(huggingface_hub.utils.http_backoff, max_retries=1, base_wait_time=0)
        monkeypatch.setattr(module, "http_backoff", hasty)
    huggingface_hub.utils.disable_progress_bars()
    with WritableHub() as hub:
        hub.let_write("hf_acme", "acme")
        yield hub
    huggingface_hub.utils.enable_progress_bars()
    huggingface_hub.close_session()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder of two large files, three small ones, and one in a folder of its own."""
    files = {"model.safetensors": b"w" * 300_000, "model-q8.gguf": b"g" * 70_000, "empty.txt": b"", CARD: OURS}
    for name, content in ({"config.json": b"{}", "more/notes.txt": b"Notes\n"} | files).items():
        (tmp_path / "made" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "made" / name).write_bytes(content)
    return tmp_path / "made"


def contents(folder: Path) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in list_files(folder).items()}


def send(hub: WritableHub, folder: Path, private: bool = True, token: str = "hf_acme", name: str = NAME) -> str:
    return upload(HfApi(hub.url, token=token), name, list_files(folder), private, "Publish")


def refused(hub: WritableHub, folder: Path, **settings) -> str:
    """Upload, which is refused in one line; return it."""
    with pytest.raises(Mistake) as mistake:
        send(hub, folder, **settings)
    assert len(str(mistake.value).splitlines()) == 1
    assert str(mistake.value).startswith(f"{hub.url}/{settings.get('name', NAME)}: ")
    return str(mistake.value)


def test_what_arrives_is_what_was_sent_in_one_private_commit(hub, folder):
    commit = send(hub, folder)
    assert hub.files(NAME) == contents(folder)
    assert hub.current(NAME).commit == commit and hub.current(NAME).private
    assert hub.commits == 2  # the first one is the Hub's own, when it creates a repository
    assert KEPT in hub.current(NAME).files


def test_only_who_asks_for_it_publishes_for_all_to_see(hub, folder):
    send(hub, folder, private=False)
    assert not hub.current(NAME).private
    assert "is public; choose another name" in refused(hub, folder)
    send(hub, folder, name="acme/hidden")
    assert "is private; choose another name" in refused(hub, folder, name="acme/hidden", private=False)


def test_a_second_artifact_takes_the_place_of_the_first_one_whole(hub, folder):
    send(hub, folder)
    (folder / "model-q8.gguf").unlink()
    (folder / "config.json").write_text('{"newer": true}')
    sent = list(hub.sent)
    send(hub, folder)
    assert hub.files(NAME) == contents(folder)
    assert hub.sent == sent  # the large file was there
    commits = hub.commits
    send(hub, folder)
    assert hub.commits == commits  # there was nothing to do


def test_what_somebody_else_put_there_is_left_alone(hub, folder):
    hub.put(NAME, {"weights.bin": b"theirs", CARD: b"---\nlicense: mit\n---\n"}, private=True)
    hub.grants["hf_acme"].add(NAME)
    assert "holds what was not published from here (README.md, weights.bin)" in refused(hub, folder)
    assert hub.files(NAME)["weights.bin"] == b"theirs"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (Fault("/upload/", status=500), "fails (HTTP 500)"),
        (Fault("/upload/", reset=True), "breaks off"),
        (Fault("/upload/", status=403), "refuses (HTTP 403"),
        (Fault("/objects/batch", status=503), "fails (HTTP 503)"),
        (Fault("/preupload/", status=500), "fails (HTTP 500)"),
        (Fault("/commit/", status=500), "fails (HTTP 500)"),
        (Fault("/commit/", reset=True), "breaks off"),
    ],
)
@pytest.mark.parametrize("published", [False, True])
def test_a_fault_in_the_middle_leaves_the_repository_as_it_was(hub, folder, fault, said, published):
    if published:
        send(hub, folder)
        (folder / "model.safetensors").write_bytes(b"newer" * 1000)
    else:
        hub.put(NAME, {KEPT: b""}, private=True)
        hub.grants["hf_acme"].add(NAME)
    before = hub.current(NAME)
    hub.faults.append(fault)
    message = refused(hub, folder)
    assert said in message and "; it holds what it held before. Run again" in message
    assert hub.current(NAME) is before
    hub.faults.clear()
    send(hub, folder)
    assert hub.files(NAME) == contents(folder)


def test_what_was_stored_before_a_fault_is_not_sent_again(hub, folder):
    hub.faults.append(Fault("/commit/", status=500, times=1))
    refused(hub, folder)
    assert sorted(hub.sent) == [70_000, 300_000]
    send(hub, folder)
    assert sorted(hub.sent) == [70_000, 300_000] and hub.files(NAME) == contents(folder)


def test_a_passing_fault_of_the_store_is_tried_again(hub, folder):
    hub.faults.append(Fault("/upload/", status=500, times=1))
    send(hub, folder)
    assert hub.files(NAME) == contents(folder)


def test_a_commit_whose_answer_is_lost_is_found(hub, folder):
    hub.faults.append(Fault("/commit/", sent_bytes=0))
    assert send(hub, folder) == hub.current(NAME).commit
    assert hub.files(NAME) == contents(folder)


def test_a_network_that_is_gone_by_then_is_told(hub, folder, monkeypatch):
    send(hub, folder)
    (folder / "config.json").write_text('{"newer": true}')
    take = hub.take_fault

    def break_down(path: str) -> Fault:
        if "/commit/" in path:
            hub.faults += [Fault("/commit/", sent_bytes=0), Fault(rf"/api/models/{NAME}$", reset=True)]
        return take(path)

    monkeypatch.setattr(hub, "take_fault", break_down)
    assert "what it holds now cannot be asked: run again, which finds out" in refused(hub, folder)
    hub.faults.clear()
    commits = hub.commits
    send(hub, folder)
    assert hub.commits == commits and hub.files(NAME) == contents(folder)


def test_a_file_that_arrives_otherwise_is_told(hub, folder, monkeypatch):
    put = hub.put

    def spoil(name: str, files: dict[str, bytes], private: bool) -> Repo:
        return put(name, files | ({"config.json": b"no"} if CARD in files else {}), private)

    monkeypatch.setattr(hub, "put", spoil)
    assert "otherwise than sent: config.json" in refused(hub, folder)


def test_a_commit_made_meanwhile_is_not_overwritten(hub, folder, monkeypatch):
    send(hub, folder)
    (folder / "config.json").write_text('{"newer": true}')
    take = hub.take_fault

    def meanwhile(path: str) -> Fault:
        if "/preupload/" in path:
            hub.put(NAME, {KEPT: b"", "theirs.txt": b"theirs"}, private=True)
        return take(path)

    monkeypatch.setattr(hub, "take_fault", meanwhile)
    message = refused(hub, folder)
    assert "A commit has happened since" in message and "it was changed by somebody else meanwhile" in message
    assert hub.files(NAME) == {"theirs.txt": b"theirs"}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"token": "hf_wrong"}, "refuses this token, wrong or expired: run `hf auth login` again, or unset HF_TOKEN"),
        ({"name": "other/thing"}, "HTTP 403: You don't have the rights to write to other/thing"),
        ({"name": "acme/not a name"}, "Repo id must"),
    ],
)
def test_who_may_not_write_is_told_so_in_one_line(hub, folder, settings, said):
    assert said in refused(hub, folder, **settings)
    assert hub.commits == 0


def test_a_token_that_may_only_read_is_told_so(hub, folder):
    send(hub, folder)
    (folder / "config.json").write_text('{"newer": true}')
    hub.grants["hf_reader"] = {NAME}
    before = hub.current(NAME)
    assert "log in with a token that may write there" in refused(hub, folder, token="hf_reader")
    assert hub.current(NAME) is before


def test_a_hub_that_is_not_there_is_told_so(hub, folder):
    hub.server_close()
    assert "the Hugging Face Hub does not answer" in refused(hub, folder)
