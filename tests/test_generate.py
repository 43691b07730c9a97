"""Generation: an answer depends on the model, the prompt and the seed, and on nothing else."""

import io

import pytest
import torch
from conftest import BOS, EOS, FAMILIES, tiny
from scipy.stats import chisquare
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from tqdm import tqdm

from stages.lib.answers.generation import (
    Answer,
    Counts,
    Drawing,
    Progress,
    SeededNoise,
    continue_ids,
    continue_prompts,
    summarize,
)
from stages.lib.answers.prompts import Prompt, add_first_sentences, first_sentence, read_prompts
from stages.lib.answers.sampling import GenerateParams
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.model.loading import end_ids
from stages.lib.params import Mistake

GREEDY = GenerateParams(seed=1, max_new_tokens=12, temperature=0.0, top_p=1.0, held_out=0, answer_tokens=8)
SAMPLED = GREEDY.model_copy(update={"temperature": 0.7, "top_p": 0.9})


@pytest.fixture
def tokenizer() -> Tokenizer:
    """One token a number, after a BOS."""
    tokenizer = Tokenizer(models.WordLevel({str(number): number for number in range(97)}, unk_token="3"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(f"{BOS} $A", None, [(str(BOS), BOS)])
    return tokenizer


def test_the_bar_of_answers_moves_with_each_token_and_stops_at_their_number():
    ids, scores = torch.zeros(4, 1), torch.zeros(4, 97)
    with tqdm(total=6, initial=2, file=io.StringIO()) as bar:
        progress, places = Progress(bar, 4, 8), []
        for _ in range(10):
            assert progress(ids, scores) is scores
            places.append(bar.n)
    assert places == [2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5, 6.0, 6.0, 6.0]


def test_without_temperature_the_likeliest_token_follows(model, tokenizer):
    (answer,) = continue_prompts(model, tokenizer, ["5 6 7"], GREEDY)
    ids = [BOS, 5, 6, 7]
    with torch.inference_mode():
        for _ in range(answer.tokens):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert [int(word) for word in answer.text.split()] == ids[4:]
    assert answer.tokens == 12 or answer.ended


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_an_answer_does_not_depend_on_its_batch(family, params, tokenizer):
    model = tiny(family)
    model.config.bos_token_id, model.config.eos_token_id = BOS, EOS
    prompts = ["5 6 7", "8", " ".join(["9 10"] * 8), "11 12"]
    alone = [continue_prompts(model, tokenizer, [prompt], params)[0] for prompt in prompts]
    assert continue_prompts(model, tokenizer, prompts, params) == alone
    assert len({answer.text for answer in alone}) > 1


def test_a_draw_depends_on_the_seed_and_the_prompt_alone(model, tokenizer):
    (first,) = continue_prompts(model, tokenizer, ["5 6 7"], SAMPLED)
    torch.manual_seed(99)
    assert continue_prompts(model, tokenizer, ["8", "5 6 7"], SAMPLED)[1] == first
    assert continue_prompts(model, tokenizer, ["5 6 7"], SAMPLED.model_copy(update={"seed": 2})) != [first]


def test_draws_have_the_probabilities_that_the_logits_say():
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(20_000, 3)
    drawn = SeededNoise(list(range(len(logits))), logits.device)(None, logits).argmax(1)
    counts = torch.bincount(drawn, minlength=3)
    assert chisquare(counts, [10_000, 6_000, 4_000]).pvalue > 0.001


def test_an_answer_ends_at_its_end_of_text(model, tokenizer, monkeypatch):
    row = [[BOS, 5, 7, 8, EOS, 9, EOS], [BOS, 5, 7, 8, 9, 10, 11]]
    monkeypatch.setattr(model, "generate", lambda *_, **settings: torch.tensor(row))
    assert continue_prompts(model, tokenizer, ["5", "5"], GREEDY) == [("7 8", 3, True), ("7 8 9 10 11", 5, False)]


def test_a_prompt_that_leaves_no_room_is_refused(model, tokenizer):
    with pytest.raises(Mistake, match=r"generate.max_new_tokens: 12 after the 54 tokens of '5 5 .* context of 64"):
        continue_prompts(model, tokenizer, ["7", "5 " * 53], GREEDY)


def test_the_first_sentence_is_the_prompt_and_the_rest_the_reference():
    text = "# Oak\n\nAn oak is a tree. It bears acorns.\nThey fall.\n"
    assert first_sentence(text) == ("An oak is a tree.", "It bears acorns.\nThey fall.")
    assert first_sentence("One line of text. And more") == ("One line of text.", "And more")
    assert first_sentence("# Title\n\nOne sentence.") is None and first_sentence("No end") is None
    assert first_sentence("An oak is a tree.\nThe elm is another.").text == "An oak is a tree."
    name = "It was J. R. Smith of St. Louis in the U.S. who came."
    assert first_sentence(f"{name} He left.") == (name, "He left.")


def test_answers_are_described_beside_what_people_wrote():
    prompts = [Prompt("a", "x y z"), Prompt("b")]
    found = summarize(prompts, [Answer("a a", 2, True), Answer("b c", 2, False)])
    assert found.counts == Counts(prompts=2, tokens=4, ended=0.5)
    assert found.prose.distinct_1 == 3 / 4 and found.people.words == 2


def test_prompts_are_the_lines_that_are_not_blank(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("one\n\n two \n")
    assert read_prompts(path) == ["one", "two"]
    path.write_text("\n")
    with pytest.raises(Mistake, match="no prompts"):
        read_prompts(path)


@pytest.mark.parametrize(
    ("told", "also", "ends"), [(1, None, [1]), (None, None, []), ([], None, []), ([4, 1], 5, [4, 1, 5]), (500, 1, [1])]
)
def test_each_of_the_ids_that_a_model_ends_with_ends_an_answer(model, tokenizer, monkeypatch, told, also, ends):
    model.config.eos_token_id, model.generation_config.eos_token_id = told, also
    assert end_ids(model.config, model.generation_config) == ends
    for end in ends:
        monkeypatch.setattr(model, "generate", lambda _, end=end, **settings: torch.tensor([[BOS, 5, 7, 8, end, 9, 9]]))
        assert continue_prompts(model, tokenizer, ["5"], GREEDY) == [Answer("7 8", 3, True)]


def test_a_prompt_begins_with_what_the_tokenizer_puts_there(model, tokenizer, monkeypatch):
    asked = []
    monkeypatch.setattr(model, "generate", lambda ids, **_: asked.append(ids.tolist()) or torch.ones(1, 9).long())
    continue_prompts(model, tokenizer, ["5 6"], GREEDY)
    tokenizer.post_processor = processors.TemplateProcessing("$A", None, [])
    continue_prompts(model, tokenizer, ["5 6"], GREEDY)
    tokenizer.post_processor = processors.TemplateProcessing("7 8 $A 9", None, [("7", 7), ("8", 8), ("9", 9)])
    continue_prompts(model, tokenizer, ["5 6"], GREEDY)
    assert asked == [[[BOS, 5, 6]], [[5, 6]], [[7, 8, 5, 6]]]


def test_a_token_without_an_embedding_is_refused_by_name(model, tokenizer):
    tokenizer.add_tokens(["ninety-seven"])
    with pytest.raises(
        Mistake, match=r"makes token 97 \('ninety-seven'\), but the model has embeddings for tokens 0 to 96"
    ):
        continue_prompts(model, tokenizer, ["5 ninety-seven"], GREEDY)


def test_sentences_end_in_any_script():
    assert first_sentence("春眠晓不觉。处处闻鸟啼。") == ("春眠晓不觉。", "处处闻鸟啼。")
    assert first_sentence("यह एक छोटा वाक्य है। यह दूसरा है।") == ("यह एक छोटा वाक्य है।", "यह दूसरा है।")
    assert first_sentence("هل هذه جملة قصيرة جدا؟ نعم.") == ("هل هذه جملة قصيرة جدا؟", "نعم.")


def test_a_first_sentence_that_leaves_no_room_is_passed_over_and_said(capsys):
    texts = ["A very long sentence is here. More.", "Oaks are old trees. They bear acorns."]
    found = add_first_sentences([], texts, 2, fits=lambda text: len(text) < 25)
    assert [prompt.text for prompt in found] == ["Oaks are old trees."]
    assert "generate.held_out: 2 held-out texts are asked for; 1 have a first sentence" in capsys.readouterr().out


def test_prompts_end_with_their_line_and_nowhere_else(tmp_path):
    (tmp_path / "prompts.txt").write_bytes("one\u2028still one\r\ntwo\x0cstill two\n".encode())
    assert read_prompts(tmp_path / "prompts.txt") == ["one\u2028still one", "two\x0cstill two"]
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9")
    with pytest.raises(Mistake, match=r"prompts.txt: not UTF-8: byte 3 is 0xe9"):
        read_prompts(tmp_path / "prompts.txt")


def test_half_a_character_is_no_part_of_an_answer(model, monkeypatch):
    tokenizer = load_tokenizer("wiki-mini")
    ids = tokenizer.encode("caf\u00e9 \U0001f600", add_special_tokens=False).ids
    monkeypatch.setattr(model, "generate", lambda *_, **settings: torch.tensor([[0, 5, *ids[:-1]]]))
    (answer,) = continue_ids(model, tokenizer, [[0, 5]], [0], Drawing(9))
    assert answer.text.startswith("caf\u00e9") and "\ufffd" not in answer.text
