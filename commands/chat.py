"""Talk to both models: base and tuned answer the same message side by side, each going on with its own answers.

    python -m commands.chat                       in the terminal, as `make chat`
    python -m commands.chat "my kettle leaks"     both answers to one message
    python -m commands.chat --json < messages     for scripts: a message a line, a line of JSON for each

Where texts are learned, what you type is continued as a text, and the next one begins anew.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from stages.lib.answers.sampling import GenerateParams
from stages.lib.characters import visible
from stages.lib.colours import COLOURS
from stages.lib.data.files import BOM
from stages.lib.inputs import differences
from stages.lib.model.quantization import Quantization
from stages.lib.params import PARAMS, Mistake, Section, read_params, read_yaml
from stages.lib.results import LOCK

if TYPE_CHECKING:  # at work they take ten seconds to import, which no mistake should take
    from stages.lib.answers.dialogue import Dialogue
    from stages.lib.answers.generation import Answer
    from stages.lib.conversations.formats import Conversation

ARMS = ("base", "tuned")
MADE = {  # what is read here, by the stage that makes it
    "prepare": [Path("data/prepared/template.json"), Path("data/prepared/test.parquet")],
    "train": [Path("models/adapter/adapter_config.json"), Path("models/adapter/adapter_model.safetensors")],
}
COMMANDS = {"/example": "ask a held-out request", "/new": "begin again", "/quit": "or Ctrl-D"}
NARROW = 70  # columns of a terminal; in fewer, one answer stands below the other
MARGIN = 2  # columns between answers


class Params(Section):
    model: str
    dataset: str
    quantization: Quantization
    generate: GenerateParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("message", nargs="?", help="what to ask; without it, what you type or what comes from a pipe")
    parser.add_argument("--json", action="store_true", help="write a line of JSON for each message")
    parser.add_argument("--sample", action="store_true", help="draw tokens as params.yaml's section generate says")
    command = parser.parse_args()
    params = read_params(Params)
    check_made()
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `chat | head` ends when head does
    sys.stdin.reconfigure(errors="surrogateescape")  # pyright: ignore[reportAttributeAccessIssue]
    sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    out, err = Console(highlight=False), Console(stderr=True, highlight=False)
    typed = command.message is None and sys.stdin.isatty() and out.is_terminal and not command.json
    try:
        with err.status(f"loading {params.model} and its adapter"), contextlib.redirect_stdout(sys.stderr):
            dialogue = load(params, command.sample)
        for line in begin(dialogue, params) if typed else []:
            out.print(line, style="dim", markup=False)
        messages = iter([command.message]) if command.message is not None else typed_lines() if typed else sys.stdin
        chat = Chat(dialogue, out, as_json=command.json, typed=typed)
        with dialogue.unpacked():
            any(not chat.take(message) for message in messages)  # until one is the last
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def check_made() -> None:
    """Refuse to go on before the pipeline ran, or where it ran with other parameters than are there now.

    Raises:
        Mistake: Says what to run.
    """
    stages = (read_yaml(LOCK) or {}).get("stages", {}) if LOCK.exists() else {}
    values = read_yaml(PARAMS)
    for stage, made in MADE.items():
        if missing := [file for file in made if not file.exists() or stage not in stages]:
            raise Mistake(f"{missing[0]}: not there yet; `make repro` makes it")
        then = stages[stage]["params"][str(PARAMS)]
        for name, before, after in differences(then, {name: values.get(name) for name in then}):
            raise Mistake(
                f"{PARAMS}: {name} was {before} when {made[0].parent} was made and is {after} now; put it back, or run "
                "`make repro`"
            )


def load(params: Params, sample: bool) -> "Dialogue":
    """Load both models."""
    from peft import PeftModel

    from stages.lib.answers.dialogue import Dialogue
    from stages.lib.answers.generation import Drawing
    from stages.lib.conversations.template import read_template
    from stages.lib.data.tokenizer import load_tokenizer
    from stages.lib.model.loading import ADAPTER, load_model

    template, told = read_template(), params.generate
    limit = "answer_tokens" if template and not sample else "max_new_tokens"
    drawing = Drawing(getattr(told, limit), *((told.temperature, told.top_p) if sample else ()))
    model = load_model(params.model, params.quantization, ADAPTER)
    assert isinstance(model, PeftModel)
    tokenizer = load_tokenizer(params.model, special=template is not None)
    return Dialogue(model, tokenizer, template, drawing, f"generate.{limit}", told.seed)


def begin(dialogue: "Dialogue", params: Params) -> Iterator[str]:
    """Yield what is said before the first message."""
    drawing, bits = dialogue.drawing, params.quantization.bits
    chosen = f"tokens drawn at temperature {drawing.temperature}" if drawing.temperature else "the likeliest tokens"
    yield f"base: {params.model} in {bits} bit; tuned: the same with the adapter that learned {params.dataset}"
    if dialogue.template:
        yield f"Both answer you with {chosen}, {drawing.max_new_tokens} at most, and each remembers its own answers."
    else:
        yield f"Both continue your text with {chosen}, {drawing.max_new_tokens} at most; the next text begins anew."
    for message in dialogue.beginning.messages:
        yield f"As in training, it all begins with {message['role']}: {visible(message['content'])}"
    yield "   ".join(f"{name}: {does}" for name, does in COMMANDS.items())


def typed_lines() -> Iterator[str]:
    """Yield what is typed, with a line's history and editing; pasted lines are one message."""
    with contextlib.suppress(ImportError):
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
    while True:
        try:
            yield input("\n> ")
        except (EOFError, KeyboardInterrupt):
            print()
            return


def checked(message: str) -> str:
    """Return a message without white space around it.

    Raises:
        Mistake: It is not UTF-8.
    """
    message = message.replace(BOM, "").strip()
    try:
        message.encode()
    except UnicodeEncodeError:
        raise Mistake(f"expected a message in UTF-8, found {os.fsencode(message)[:40]!r}") from None
    return message


class Chat:
    """A conversation with each model.

    Args:
        dialogue: Both models.
        out: Where answers are shown.
        as_json: Whether as JSON.
        typed: Whether somebody types, who can mend a mistake and may stop an answer.
    """

    def __init__(self, dialogue: "Dialogue", out: Console, as_json: bool, typed: bool) -> None:
        self.dialogue, self.out, self.as_json, self.typed = dialogue, out, as_json, typed
        self.said = dict.fromkeys(ARMS, dialogue.beginning)
        self.examples = cycle(dialogue.examples())

    def take(self, message: str) -> bool:
        """Answer a message or obey a command; return whether to go on."""
        try:
            message = checked(message)
            if message == "/quit":
                return False
            if message == "/new":
                self.said = dict.fromkeys(ARMS, self.dialogue.beginning)
            elif message == "/example":
                asked, reference = next(self.examples, (None, None))
                if asked is None:
                    raise Mistake(f"{message}: no held-out text goes on after its first sentence")
                self.tell_asked(asked)
                self.ask(dict.fromkeys(ARMS, asked), reference)
            elif re.fullmatch(r"/\w+", message):
                raise Mistake(f"{message}: no such command; there are {', '.join(COMMANDS)}")
            elif message:
                self.ask({arm: said.then(message) for arm, said in self.said.items()})
        except Mistake as mistake:
            if not self.typed:
                raise
            self.out.print(Text(visible(str(mistake)), style="red"))
        except KeyboardInterrupt:
            if not self.typed:
                raise
            self.out.print(Text("stopped: as if not asked", style="dim"))
        return True

    def tell_asked(self, asked: "Conversation") -> None:
        """Show a conversation that nobody typed, up to its last answer."""
        if not self.as_json:
            for message in asked.messages[:-1]:
                self.out.print(Text(f"{message['role']}: {visible(message['content'])}"), soft_wrap=not self.typed)

    def ask(self, asked: "dict[str, Conversation]", reference: str | None = None) -> None:
        """Let both models answer, show what they say as they say it, and keep it in conversations."""
        heard: dict[str, str] = dict.fromkeys(ARMS, "")
        answers: dict[str, Answer] = {}
        live = self.out.is_terminal and not self.as_json
        show = partial(self.side_by_side, heard, answers, reference)
        with Live(get_renderable=show, console=self.out, refresh_per_second=8) if live else contextlib.nullcontext():
            for arm in ARMS:
                answers[arm] = self.dialogue.answer(arm, asked[arm], partial(heard.__setitem__, arm))
                heard[arm] = answers[arm].text
        if self.dialogue.template:
            self.said = {arm: asked[arm].answered_by(answers[arm].text) for arm in ARMS}
        if self.as_json:
            given = {arm: {"messages": asked[arm].messages[:-1], **answers[arm]._asdict()} for arm in ARMS}
            print(json.dumps({**given, "reference": reference}), flush=True)
        elif not live:
            told = {arm: heard[arm] + self.end_of(answers[arm]) for arm in ARMS} | {"reference": reference}
            print("\n".join(f"{name}: {visible(text)}" for name, text in told.items() if text is not None), flush=True)

    def side_by_side(
        self, heard: dict[str, str], answers: "dict[str, Answer]", reference: str | None
    ) -> RenderableType:
        """Lay out what has been heard so far, beside each other where there is room."""
        cells = []
        for arm in ARMS:
            end = self.end_of(answers[arm]) if arm in answers else " …"
            title, text = Text(arm, style=f"bold {COLOURS[arm]}"), Text(visible(heard[arm]), overflow="fold")
            cells.append(Group(title, text.append(end, style="dim")))
        known = [Text("reference", style="bold"), Text(visible(reference))] if reference else []
        if self.out.width < NARROW:
            return Group(cells[0], "", cells[1], *known)
        table = Table.grid(expand=True, padding=(0, MARGIN))
        for _ in ARMS:
            table.add_column(ratio=1, overflow="fold")
        table.add_row(*cells)
        return Group(table, *known)

    def end_of(self, answer: "Answer") -> str:
        """Say how an answer ends, unless the model ended it by itself."""
        nothing = "" if answer.text.strip() else "(nothing)"
        return nothing if answer.ended else f"{nothing} … (stopped after {answer.tokens} tokens: {self.dialogue.limit})"


if __name__ == "__main__":
    main()
