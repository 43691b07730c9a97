"""Protocol: which models are scored, and the parameters by which documents are scored and arms compared."""

from typing import Annotated

from pydantic import Field, PositiveInt

from stages.lib.params import Section

ARMS = ("full", "base", "tuned")


class EvaluateParams(Section):
    window_tokens: PositiveInt  # longest input; capped by the model's context
    stride_fraction: Annotated[float, Field(gt=0, le=1)]  # of the window, from one window's end to the next
    batch_size: PositiveInt  # windows scored at once: changes speed and memory, not results


class CompareParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the sign flips, and of the bootstrap
    resamples: Annotated[int, Field(ge=100)]
    margin: Annotated[float, Field(ge=0, lt=1)]  # a rise of perplexity that is no loss, as a share of it
