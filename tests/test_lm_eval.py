"""Agreement with lm-evaluation-harness: the same model on the same pages gives the same perplexities.

Skipped where the harness is not installed; `make agreement` installs it apart and runs this.
"""

import json

import pytest
import torch
from support.training import PARAMS
from transformers import AutoTokenizer

from stages.lib.data.preparation import tokenize
from stages.lib.data.texts import read_dataset
from stages.lib.data.tokenizer import load_tokenizer
from stages.lib.model.adapter import add_adapter
from stages.lib.model.loading import load_model
from stages.lib.scoring.document_scores import summarize
from stages.lib.scoring.windows import score_documents
from stages.lib.sources.source import MODELS

pytest.importorskip("lm_eval")

TASK = """
task: pages
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}, {{metric: byte_perplexity}}, {{metric: bits_per_byte}}]
"""


@pytest.mark.parametrize("window_tokens", [128, 512])
@pytest.mark.parametrize("adapted", [False, True])
def test_the_harness_finds_the_same(adapted, window_tokens, tmp_path):
    from commands.tasks import run_tasks

    texts = list(read_dataset("encyclopedia"))[:12]
    model = load_model("wiki-mini", PARAMS.quantization)
    if adapted:
        torch.manual_seed(0)
        model = add_adapter(model, PARAMS.lora).eval()
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(weight, std=0.02)
    pages = tmp_path / "pages.jsonl"
    pages.write_text("".join(json.dumps({"text": text.text}) + "\n" for text in texts))
    (tmp_path / "pages.yaml").write_text(TASK.format(file=pages))
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "wiki-mini")
    harness = run_tasks(model, tokenizer, ["pages"], include=tmp_path, window_tokens=window_tokens)
    theirs = {score.metric: score.value for score in harness}
    documents = tokenize(texts, load_tokenizer("wiki-mini"))
    found = summarize(score_documents(model, documents, window_tokens, stride_tokens=window_tokens, batch_size=4))
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        ours = getattr(found, metric)
        print(f"{metric} {window_tokens} {adapted}: {ours:.9g}, lm-eval {theirs[metric]:.9g}")
        assert ours == pytest.approx(theirs[metric], rel=1e-5)


def test_tasks_are_tabulated_for_both_models(tmp_path):
    from commands.tasks import read_results, table

    base = {"t": {"alias": "t", "acc,none": 0.25, "acc_stderr,none": 0.01, "ppl,none": 3.0, "ppl_stderr,none": "N/A"}}
    tuned = {"t": base["t"] | {"acc,none": 0.5}}
    assert table(read_results(base), read_results(tuned)).splitlines()[2:] == [
        "| t | acc | 0.2500 ± 0.0100 | 0.5000 ± 0.0100 |",
        "| t | ppl | 3.0000 | 3.0000 |",
    ]
