"""Sampling: the parameters by which answers are drawn."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.lib.params import Section


class GenerateParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat  # 0: always the likeliest token
    top_p: Annotated[float, Field(gt=0, le=1)]  # draw from the likeliest tokens that have this share together
    held_out: NonNegativeInt  # documents whose first sentence is continued too
