"""Protocol: the parameters by which a dataset is read and split."""

import datetime
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from stages.lib.params import Section

ALSO = Path("data/also")  # further datasets: a folder each, with its documents and their scores


def _iso_date(text: str) -> str:
    try:
        return datetime.date.fromisoformat(text).isoformat()
    except ValueError:
        raise ValueError(f"expected a date such as '2025-01-01', found {text!r}") from None


class PrepareParams(Section):
    train_fraction: Annotated[float, Field(gt=0, le=1)]  # of the training documents, kept
    validation_fraction: Annotated[float, Field(ge=0, lt=1)]  # of the documents, where the dataset names no split
    test_fraction: Annotated[float, Field(gt=0, lt=1)]  # likewise
    max_overlap: Annotated[float, Field(ge=0, le=1)]  # of any held-out text with training ones, or with another
    template: Annotated[str, Field(min_length=1)]  # of conversations: a file, or auto: the model's own or a plain one
    date: Annotated[str, AfterValidator(_iso_date)]  # what a template that writes today's date is told
    max_tokens: Annotated[int, Field(ge=8)]  # of a conversation; capped by the model's context
    max_left_out: Annotated[float, Field(ge=0, le=1)]  # share of conversations that nothing can be learned from
    max_alike: Annotated[float, Field(gt=0, le=1)]  # of two conversations, one of them held out; more: one is left out

    @model_validator(mode="after")
    def _leaves_training(self) -> "PrepareParams":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must leave something to train on")
        return self
