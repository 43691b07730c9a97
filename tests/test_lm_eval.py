"""Agreement with lm-evaluation-harness: the same model on the same pages gives the same perplexities.

Skipped where the harness is not installed; `make agreement` installs it apart and runs this.
"""

import json

import pytest
import torch
from test_train import PARAMS
from transformers import AutoTokenizer

from stages.lib.adapter import add_adapter
from stages.lib.model import load_model
from stages.lib.scores import summarize
from stages.lib.source import MODELS
from stages.lib.texts import read_dataset
from stages.lib.tokenizer import load_tokenizer
from stages.lib.windows import score_documents
from stages.prepare import tokenize

lm_eval = pytest.importorskip("lm_eval")

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
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

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
    harness = lm_eval.simple_evaluate(
        HFLM(
            model,
            tokenizer=AutoTokenizer.from_pretrained(MODELS / "wiki-mini"),
            max_length=window_tokens,
            add_bos_token=False,
            softmax_dtype="float32",
            batch_size=4,
        ),
        tasks=["pages"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )["results"]["pages"]
    documents = tokenize(texts, load_tokenizer("wiki-mini"))
    found = summarize(score_documents(model, documents, window_tokens, stride_tokens=window_tokens, batch_size=4))
    for metric in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        print(f"{metric} {window_tokens} {adapted}: {found[metric]:.9g}, lm-eval {harness[f'{metric},none']:.9g}")
        assert found[metric] == pytest.approx(harness[f"{metric},none"], rel=1e-5)
