"""Continue the prompts with the base model or the tuned one.   data/prompts.txt, models/ -> data/generated

Run by `dvc repro generate`; alone: `python -m stages.generate tuned`.
"""

import sys
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from stages.lib.params import Mistake, Section, read_params
from stages.lib.quantization import Quantization

Arm = Literal["base", "tuned"]
ARMS = ("base", "tuned")


class GenerateParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat  # 0: always the likeliest token
    top_p: Annotated[float, Field(gt=0, le=1)]  # draw from the likeliest tokens that have this share together


class Params(Section):
    model: str
    quantization: Quantization
    generate: GenerateParams


def read_arm() -> tuple[Arm, Params]:
    """Read the arm from the command line, and the parameters."""
    arm = sys.argv[1] if len(sys.argv) == 2 else None
    if arm not in ARMS:
        raise Mistake(f"usage: python -m stages.generate {{{','.join(ARMS)}}}")
    return arm, read_params(Params)


if __name__ == "__main__":
    read_arm()  # refuses a mistake at once: the imports below take ten seconds

import hashlib
import json
from pathlib import Path

import torch
from peft import PeftModel
from tokenizers import Tokenizer
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from stages.lib.metrics import measure_cost, write_metrics
from stages.lib.model import ADAPTER, bos_eos, context_tokens, load_model, precision
from stages.lib.prompts import read_prompts
from stages.lib.tokenizer import load_tokenizer

GENERATED = Path("data/generated")


def continue_prompt(
    model: PreTrainedModel | PeftModel, tokenizer: Tokenizer, prompt: str, params: GenerateParams
) -> tuple[str, int, bool]:
    """Continue one prompt, with draws that depend on the seed and the prompt alone.

    Returns:
        The continuation without the prompt, its tokens, and whether the model ended it by itself.

    Raises:
        Mistake: The prompt and its continuation do not fit the model's context.
    """
    bos, eos = bos_eos(model.config)
    ids = [bos, *tokenizer.encode(prompt, add_special_tokens=False).ids]
    if len(ids) + params.max_new_tokens > context_tokens(model.config):
        raise Mistake(
            f"params.yaml: generate.max_new_tokens: {params.max_new_tokens} after the {len(ids)} tokens of "
            f"{prompt[:40]!r} exceed the model's context of {context_tokens(model.config)}"
        )
    sampling = {"temperature": params.temperature, "top_p": params.top_p, "top_k": 0} if params.temperature else {}
    config = GenerationConfig(
        max_new_tokens=params.max_new_tokens,
        do_sample=params.temperature > 0,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=eos,  # one prompt at a time: nothing is ever padded
        **sampling,
    )
    torch.manual_seed(int.from_bytes(hashlib.sha256(f"{params.seed}\n{prompt}".encode()).digest()[:4]))
    inputs = torch.tensor([ids], device=model.device)
    output = model.generate(input_ids=inputs, attention_mask=torch.ones_like(inputs), generation_config=config)
    new = output[0, len(ids) :].tolist()
    return tokenizer.decode(new, skip_special_tokens=True), len(new), new[-1] == eos


def main() -> None:
    arm, params = read_arm()
    prompts = read_prompts()
    tokenizer = load_tokenizer(params.model)
    model = load_model(params.model, params.quantization, ADAPTER if arm == "tuned" else None)
    with measure_cost(f"generate/{arm}") as cost:
        rows = [(p, *continue_prompt(model, tokenizer, p, params.generate)) for p in tqdm(prompts, arm, leave=False)]
        cost["tokens"] = sum(tokens for _, _, tokens, _ in rows)
    samples = [{"prompt": prompt, "text": text, "tokens": n, "ended": ended} for prompt, text, n, ended in rows]
    GENERATED.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(sample, ensure_ascii=False) + "\n" for sample in samples]
    (GENERATED / f"{arm}.jsonl").write_text("".join(lines), encoding="utf-8")
    summary = {
        "prompts": len(samples),
        "tokens": sum(sample["tokens"] for sample in samples),
        "ended": sum(sample["ended"] for sample in samples),
        "precision": precision(params.quantization),
    }
    write_metrics(f"generate/{arm}", summary | {"samples": samples})


if __name__ == "__main__":
    main()
