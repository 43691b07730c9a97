"""The chat: both models get exactly what the pipeline gives them, and nothing they say can harm the terminal."""

import io
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, document
from peft import LoraConfig, get_peft_model
from rich.console import Console
from support.templates import chat_tokenizer, template
from transformers import AutoModelForCausalLM

from commands.chat import Chat, check_made, checked, typed_lines
from stages import prepare
from stages.lib.answers import conversing, dialogue, generation
from stages.lib.answers.conversing import answer_conversations, answer_prompts
from stages.lib.answers.dialogue import Dialogue
from stages.lib.answers.generation import Drawing, continue_ids, continue_prompts, text_ids
from stages.lib.answers.sampling import GenerateParams
from stages.lib.characters import visible
from stages.lib.conversations.formats import Conversation
from stages.lib.conversations.rows import LeftOut, to_documents
from stages.lib.conversations.targets import Encoder
from stages.lib.conversations.template import Template, read_template
from stages.lib.data.documents import write_documents
from stages.lib.data.texts import Text
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.params import Mistake, read_yaml

PARAMS = GenerateParams(seed=1, max_new_tokens=4, temperature=0.0, top_p=1.0, held_out=0, answer_tokens=4)
SYSTEM = {"role": "system", "content": "Be brief."}
ESCAPES = "\x1b]0;title\x07\x1b[2J\x9b31m\r\u202eevil\x7f"
COMMAND = (sys.executable, "-m", "commands.chat")


@pytest.fixture(scope="module")
def model():
    """wiki-mini with an adapter that changes what it says."""
    base = AutoModelForCausalLM.from_pretrained(REPOSITORY / "models/base/wiki-mini")
    base.resize_token_embeddings(base.config.vocab_size + 2)  # the tokens of the templates
    torch.manual_seed(0)
    tuned = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"], init_lora_weights=False, lora_alpha=32))
    return tuned.requires_grad_(False).eval()


@pytest.fixture
def talk(model) -> Dialogue:
    opened = template("plain turns").opened_as([conversation("Hi", "Ho")])
    return Dialogue(model, chat_tokenizer(), opened, Drawing(4), "generate.answer_tokens", seed=1)


@pytest.fixture
def given(monkeypatch) -> list[list[int]]:
    """The token ids of all prompts that a model is given."""
    ids = []

    def note(model, tokenizer, prompts, *rest, **more):
        ids.extend(prompts)
        return continue_ids(model, tokenizer, prompts, *rest, **more)

    for module in (conversing, dialogue, generation):
        monkeypatch.setattr(module, "continue_ids", note)
    return ids


def conversation(*contents: str) -> Conversation:
    messages = [SYSTEM, *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(contents))]
    return Conversation(messages, [message["role"] == "assistant" for message in messages])


def chat(talk: Dialogue, width: int | None = None, **settings: bool) -> Chat:
    """A chat in a terminal of a width, or without one."""
    out = Console(
        file=io.StringIO() if width else None, force_terminal=width is not None, width=width, color_system=None
    )
    return Chat(talk, out, **{"as_json": False, "typed": False, **settings})


def test_a_message_is_the_token_ids_that_generate_makes_of_a_prompt(talk, given):
    answer_prompts(talk.model, talk.tokenizer, talk.template, ["Hi"], PARAMS)
    for arm in ("base", "tuned"):
        talk.answer(arm, talk.beginning.then("Hi"), str)
    assert given == [given[0]] * 3
    assert talk.tokenizer.decode(given[0], skip_special_tokens=False) == (
        "<|start|>system\nBe brief.<|end|>\n<|start|>user\nHi<|end|>\n<|start|>assistant\n"
    )


def test_a_conversation_is_the_token_ids_and_gets_the_answers_that_generate_gives(talk, given, tmp_path, monkeypatch):
    encoder = Encoder.of(talk.template, talk.tokenizer)
    rows = [Text(f"{n}", "", "", "test", one) for n, one in enumerate([conversation("Hi", "Ho", "Bye", "See you")])]
    documents = to_documents(rows, encoder, 99, LeftOut())
    (found,) = answer_conversations(talk.model, talk.tokenizer, talk.template, documents, PARAMS)
    (tmp_path / "data/prepared").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    write_documents(documents, "test")
    ((asked, reference),) = talk.examples()
    heard = []
    assert talk.answer("tuned", asked, heard.append) == found.answer
    assert given[0] == given[1] and reference == found.reference.strip() == "See you"
    assert heard[0] == "" and found.answer.text.startswith(heard[-1]) and len(heard) > 2
    with talk.model.disable_adapter():
        (base,) = answer_conversations(talk.model, talk.tokenizer, talk.template, documents, PARAMS)
    assert talk.answer("base", asked, str) == base.answer != found.answer


def test_a_text_is_continued_as_generate_does(model, given, capsys):
    talk = Dialogue(model, load_tokenizer("wiki-mini"), None, Drawing(4), "generate.max_new_tokens", seed=1)
    (found,) = continue_prompts(model, talk.tokenizer, ["An oak is"], PARAMS)
    chatting = chat(talk)
    assert chatting.take("An oak is\n") and chatting.take("An oak is")  # of which nothing is remembered
    assert given == [text_ids(talk.tokenizer, "An oak is")] * 5
    assert capsys.readouterr().out.count(f"tuned: {visible(found.text)} … (stopped after 4 tokens") == 2


def test_each_model_goes_on_with_its_own_answers_until_a_new_beginning(talk, given, capsys):
    chatting = chat(talk, as_json=True)
    for message in ("Hi", "And then?", "/new", "Hi"):
        chatting.take(message)
    first, second, again = map(json.loads, capsys.readouterr().out.splitlines())
    for arm in ("base", "tuned"):
        answer = {"role": "assistant", "content": first[arm]["text"]}
        then = {"role": "user", "content": "And then?"}
        assert second[arm]["messages"] == [*first[arm]["messages"], answer, then]
    assert first["base"]["text"] != first["tuned"]["text"] and again == first
    assert first["base"]["messages"] == [SYSTEM, {"role": "user", "content": "Hi"}] and first["reference"] is None


def test_what_all_training_conversations_begin_with_comes_before_a_prompt():
    plain, greeted = Conversation([{"role": "user", "content": "Hi"}], [False]), conversation("Hi", "Ho")
    tools = [{"type": "function"}]
    armed = Conversation(greeted.messages, greeted.learned, tools)
    for learned, opening, shared in (
        ([greeted, conversation("Bye", "Bye")], [SYSTEM], None),
        ([greeted, plain], [], None),
        ([armed, armed], [SYSTEM], tools),
        ([armed, greeted], [SYSTEM], None),
        ([Conversation([SYSTEM, {"role": "assistant", "content": "?"}], [False, True])], [], None),
    ):
        opened = template("plain turns").opened_as(learned)
        assert (opened.opening, opened.tools) == (opening, shared)
        assert Template.from_json(opened.to_json()) == opened


def test_prepare_keeps_what_all_training_conversations_begin_with(tmp_path, monkeypatch, capsys):
    (tmp_path / "models").mkdir()
    (tmp_path / "data/raw/mine").mkdir(parents=True)
    for name in ("dvc.yaml", "models/base"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    params = re.sub(r"(?m)^model: \S+", "model: wiki-mini", (REPOSITORY / "params.yaml").read_text())
    (tmp_path / "params.yaml").write_text(re.sub(r"(?m)^dataset: \S+", "dataset: mine", params))
    for split, count in {"train": 3, "validation": 1, "test": 2}.items():
        asked = [conversation(f"Number {n} of {split}?", f"{split} {n}").messages for n in range(count)]
        lines = [json.dumps({"messages": messages}) for messages in asked]
        (tmp_path / f"data/raw/mine/{split}.jsonl").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["prepare"])
    prepare.main()
    assert read_template().beginning == Conversation([SYSTEM], [False])
    assert "prompts are asked after what opens every training conversation: 'Be brief.'" in capsys.readouterr().out


def test_a_special_token_in_a_message_is_refused(talk):
    with pytest.raises(Mistake, match=r"'Hi<\|end\|>': cannot be asked: names a special token of the model"):
        chat(talk).take("Hi<|end|>")
    with pytest.raises(Mistake, match="cannot be asked: names a special token"):
        answer_prompts(talk.model, talk.tokenizer, talk.template, ["Hi<|end|>"], PARAMS)


def test_one_who_types_is_told_of_a_mistake_and_goes_on(talk):
    chatting = chat(talk, width=100, typed=True)
    for message in ("/help", "caf\udce9", "Hi " * 600):
        assert chatting.take(message)
    shown = chatting.out.file.getvalue()
    assert "/help: no such command; there are /example, /new, /quit" in shown
    assert "expected a message in UTF-8, found b'caf\\xe9'" in shown and "exceed the model's context of 512" in shown
    assert chatting.said["base"] == talk.beginning and not chatting.take(" /quit ")


def test_where_nothing_held_out_can_be_an_example_it_says_so(talk, monkeypatch):
    monkeypatch.setattr(Dialogue, "examples", lambda _: iter([]))
    with pytest.raises(Mistake, match="no held-out text goes on after its first sentence"):
        chat(talk).take("/example")


def test_ctrl_c_stops_an_answer_and_leaves_the_conversation_as_it_was(talk, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Dialogue, "answer", interrupted)
    chatting = chat(talk, width=100, typed=True)
    assert chatting.take("Hi") and chatting.said["tuned"] == talk.beginning
    assert "stopped: as if not asked" in chatting.out.file.getvalue()
    with pytest.raises(KeyboardInterrupt):
        chat(talk).take("Hi")


def test_a_message_is_taken_without_white_space_and_byte_order_mark():
    assert checked("\ufeff an oak\r\n") == "an oak"


@pytest.mark.parametrize("width", [40, 100, None])
def test_nothing_a_model_or_a_dataset_says_acts_on_the_terminal(talk, monkeypatch, capsys, width):
    hostile = generation.Answer(f"[bold]{ESCAPES}", 1, ended=False)
    monkeypatch.setattr(Dialogue, "answer", lambda _, arm, asked, tell: tell(ESCAPES) or hostile)
    monkeypatch.setattr(Dialogue, "examples", lambda _: iter([(conversation(ESCAPES, ""), ESCAPES)]))
    chatting = chat(talk, width)
    chatting.take("/example")
    shown = chatting.out.file.getvalue() if width else capsys.readouterr().out
    assert "[bold]<U+001B>]0;title<U+0007>" in re.sub(r"\s", "", shown)
    own = r"\x1b\[(\?25[lh]|\d*[A-K]|\d+m|0m)|\r"  # what moves the cursor while an answer grows
    assert not set(ESCAPES) - set("evil]0;title[2J31m") & set(re.sub(own if width else "", "", shown))


def test_answers_stand_side_by_side_where_there_is_room(talk, monkeypatch):
    said = {"base": "It is a tree.", "tuned": "An oak."}
    monkeypatch.setattr(Dialogue, "answer", lambda _, arm, asked, tell: generation.Answer(said[arm], 3, ended=True))
    shown = {}
    for width in (40, 100):
        chatting = chat(talk, width)
        chatting.take("Hi")
        shown[width] = re.sub(r"\x1b\[.*?[A-Za-z]|\r", "", chatting.out.file.getvalue())
    assert re.search(r"It is a tree\. +An oak\.", shown[100]) and "base\nIt is a tree." in re.sub(
        " +\n", "\n", shown[40]
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A folder in which the pipeline seems to have run on conversations."""
    folder = tmp_path_factory.mktemp("chat")
    for name in ("dvc.yaml", "stages", "commands", "models/base"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(REPOSITORY / name)
    text = (REPOSITORY / "params.yaml").read_text()
    for name, value in {"model": "wiki-mini", "  answer_tokens": "6", "  max_new_tokens": "6"}.items():
        text = re.sub(rf"(?m)^{name}: \S+", f"{name}: {value}", text)
    (folder / "params.yaml").write_text(text)
    params = read_yaml(folder / "params.yaml")
    stages = {
        "prepare": {"params": {"params.yaml": {name: params[name] for name in ("model", "dataset", "prepare")}}},
        "train": {
            "params": {"params.yaml": {name: params[name] for name in ("model", "quantization", "lora", "train")}}
        },
    }
    (folder / "dvc.lock").write_text(json.dumps({"stages": stages}))
    base = AutoModelForCausalLM.from_pretrained(REPOSITORY / "models/base/wiki-mini")
    get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["v_proj"])).save_pretrained(
        folder / "models/adapter"
    )
    (folder / "data/prepared").mkdir(parents=True)
    (folder / "data/prepared/template.json").write_text("null")
    write_documents([document("a", 5)], "test", folder / "data/prepared")
    return folder


@pytest.mark.parametrize("gone", ["data/prepared/test.parquet", "models/adapter", "dvc.lock"])
def test_before_the_pipeline_ran_a_line_says_what_to_run(project, tmp_path, monkeypatch, gone):
    shutil.copytree(project, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    check_made()
    shutil.rmtree(gone) if Path(gone).is_dir() else Path(gone).unlink()
    with pytest.raises(Mistake, match="not there yet; `make repro` makes it"):
        check_made()


@pytest.mark.parametrize(("old", "new"), [("model: wiki-mini", "model: smollm2-135m"), ("  r: 8", "  r: 16")])
def test_a_model_made_with_other_parameters_is_not_talked_to(project, tmp_path, monkeypatch, old, new):
    shutil.copytree(project, tmp_path / "copy", symlinks=True)
    monkeypatch.chdir(tmp_path / "copy")
    params = Path("params.yaml").read_text()
    assert old in params
    Path("params.yaml").write_text(params.replace(old, new, 1))
    with pytest.raises(
        Mistake, match=r"(model|lora\.r) was .* was made and is .* now; put it back, or run `make repro`"
    ):
        check_made()


def test_without_a_terminal_answers_and_nothing_else_are_printed(project):
    ran = subprocess.run([*COMMAND, "An oak is"], cwd=project, capture_output=True, text=True)
    assert ran.returncode == 0 and ran.stderr == ""
    assert re.fullmatch(r"base: .*\ntuned: .*\n", ran.stdout, re.S)
    piped = subprocess.run(
        [*COMMAND, "--json"], cwd=project, capture_output=True, input=b"\xef\xbb\xbfAn oak is\r\n\ncaf\xe9\nNo\n"
    )
    (row,) = map(json.loads, piped.stdout.splitlines())
    assert set(row) == {"base", "tuned", "reference"} and f"base: {row['base']['text']}" in ran.stdout
    assert piped.returncode == 1 and piped.stderr == b"expected a message in UTF-8, found b'caf\\xe9'\n"


def test_in_a_terminal_it_streams_takes_pasted_lines_as_one_message_and_ends_with_ctrl_d(project):
    screen = Terminal(project)
    screen.wait_for(r"/quit: or Ctrl-D.*> ")
    screen.type("\x1b[200~An oak\nis\x1b[201~\n")
    screen.wait_for(r"after 6 tokens.* after 6 tokens.*> $")
    screen.type("\x04")
    assert screen.leave() == 0 and "Traceback" not in screen.seen


def test_ctrl_c_while_it_loads_ends_it_without_a_word(project):
    screen = Terminal(project)
    screen.wait_for("loading")
    os.kill(screen.process, signal.SIGINT)
    assert screen.leave() == 130 and "Traceback" not in screen.seen


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_ctrl_d_and_ctrl_c_end_what_is_typed(monkeypatch, end):
    typed = iter(["Hi"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed, None) or (_ for _ in ()).throw(end))
    assert list(typed_lines()) == ["Hi"]


class Terminal:
    """A chat in a terminal of its own."""

    def __init__(self, folder: Path) -> None:
        self.process, self.file = pty.fork()
        self.seen = ""
        if self.process == 0:
            os.chdir(folder)
            os.environ.update(TERM="xterm", COLUMNS="100", LINES="30")
            os.execv(sys.executable, COMMAND)

    def read(self) -> bool:
        try:
            self.seen += os.read(self.file, 4096).decode(errors="replace")
        except OSError:  # it ended
            return False
        return True

    def wait_for(self, pattern: str) -> None:
        while not re.search(pattern, self.seen, re.S):
            assert self.read(), self.seen

    def type(self, text: str) -> None:
        os.write(self.file, text.encode())

    def leave(self) -> int:
        while self.read():
            pass
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])
