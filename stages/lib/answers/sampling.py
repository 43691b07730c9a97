"""Sampling: the parameters by which texts are continued and conversations answered."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from stages.lib.params import Section


class GenerateParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    max_new_tokens: PositiveInt
    temperature: NonNegativeFloat  # 0: always the likeliest token
    top_p: Annotated[float, Field(gt=0, le=1)]  # draw from the likeliest tokens that have this share together
    held_out: NonNegativeInt  # texts whose first sentence is continued too
    answer_tokens: PositiveInt  # of an answer to a held-out conversation, always the likeliest ones
