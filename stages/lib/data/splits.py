"""Splits: the parameters by which documents are put in them."""

from typing import Annotated

from pydantic import Field, model_validator

from stages.lib.params import Section


class PrepareParams(Section):
    train_fraction: Annotated[float, Field(gt=0, le=1)]  # of the training documents, kept
    validation_fraction: Annotated[float, Field(ge=0, lt=1)]  # of the documents, where the dataset names no split
    test_fraction: Annotated[float, Field(gt=0, lt=1)]  # likewise
    max_overlap: Annotated[float, Field(ge=0, le=1)]  # of any held-out document with training ones, or with another

    @model_validator(mode="after")
    def _leaves_training(self) -> "PrepareParams":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction + test_fraction must leave something to train on")
        return self
