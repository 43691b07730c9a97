"""Rating: the parameters by which the sheet is mixed and its votes are counted."""

from typing import Annotated

from pydantic import Field, NonNegativeInt

from stages.lib.params import Section


class SheetParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the order of items and of texts
    held_out: NonNegativeInt  # held-out conversations whose answers are rated, besides those to prompts


class RateParams(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the draws
    resamples: Annotated[int, Field(ge=100)]
