"""Score held-out documents with the base model, quantised or not, or with the adapter on it.

    data/prepared/test.parquet, models/ -> data/scores/<arm>.parquet, metrics/evaluate/<arm>.json

Run by `dvc repro evaluate`; alone: `python -m stages.evaluate base`. The arms:

    full    the base model in 16 bit (32 on a CPU)
    base    the same weights, quantised
    tuned   the quantised base with the adapter on it

The tuned model scores the validation documents too: experiments are ranked by these, and judged by the others.
With the name of a dataset too, `python -m stages.evaluate base <name>`, it scores the documents in data/also/<name>/
instead, and writes its scores beside them and metrics/also/<name>/<arm>.json.
"""

from stages.lib.inputs import Inputs, read_command
from stages.lib.model.quantization import FULL, Quantization
from stages.lib.params import Mistake, Section, read_params
from stages.lib.scoring.protocol import ARMS, EvaluateParams
from stages.lib.sources.source import MODELS
from stages.lib.training.processes import die_with_dvc, take_gpu


class Params(Section):
    """Of the full arm, which quantisation does not touch."""

    model: str
    evaluate: EvaluateParams


class QuantizedParams(Params):
    """Of the arms base and tuned."""

    quantization: Quantization


def main() -> None:
    also = {"nargs": "?", "help": "a folder of data/also/"}
    command = read_command(__doc__, ["model"], arm={"choices": ARMS}, also=also)
    arm, dataset = command.arm, command.also
    params = read_params(Params if arm == "full" else QuantizedParams, command=command)

    from stages.lib.data.documents import PREPARED, read_documents  # ten seconds, which no mistake above should take
    from stages.lib.data.protocol import ALSO
    from stages.lib.data.tokenizer import load_tokenizer
    from stages.lib.metrics import measure_cost, write_metrics
    from stages.lib.model.loading import ADAPTER, load_model
    from stages.lib.records import to_metrics
    from stages.lib.scoring.document_scores import SCORES, write_scores
    from stages.lib.scoring.evaluation import evaluate

    texts, table, name = (
        (ALSO / dataset, ALSO / dataset, f"also/{dataset}") if dataset else (PREPARED, SCORES, "evaluate")
    )
    adapter = ADAPTER if arm == "tuned" else None
    read = [texts / "test.parquet", *([] if dataset else [PREPARED / "validation.parquet"]), MODELS / params.model]
    inputs = Inputs(params, *read, *([adapter] if adapter else []))
    quantization = params.quantization if isinstance(params, QuantizedParams) else FULL
    tokenizer = load_tokenizer(params.model)
    model = load_model(params.model, quantization, adapter)
    documents = list(read_documents("test", texts))
    if not documents:
        raise Mistake(f"{texts}/test.parquet: no documents to score; raise prepare.test_fraction")
    ranked = list(read_documents("validation")) if arm == "tuned" and not dataset else None
    with measure_cost(f"{name}/{arm}") as cost:
        evaluation, scores = evaluate(model, quantization, documents, tokenizer, params.evaluate, ranked)
        cost["tokens"] = evaluation.num_tokens
        inputs.confirm()
    write_scores(scores, arm, table)
    write_metrics(f"{name}/{arm}", to_metrics(evaluation))
    found = evaluation.document
    print(f"{arm}: perplexity {found.perplexity:.3f} over {found.tokens:,} tokens; {evaluation.precision}")
    print(*(f"warning: {line}" for line in evaluation.warnings), sep="\n", end="")


if __name__ == "__main__":
    die_with_dvc()
    take_gpu()
    main()
