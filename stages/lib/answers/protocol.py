"""Protocol: which score of answers decides, and how its interval is found."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from stages.lib.params import Section


def check_pattern(pattern: str) -> str:
    """Refuse what is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"no regular expression: {error}") from None
    return pattern


class GradeParams(Section):
    """Named before anything is answered: who chooses among scores afterwards finds one that pleases."""

    metric: Literal["exact_match", "token_f1", "last_number", "json_fields", "pattern"]  # decides
    pattern: Annotated[str, AfterValidator(check_pattern)]  # what it finds first must be the same; empty: unused
    seed: Annotated[int, Field(ge=0, lt=2**32)]  # of the sign flips
    resamples: Annotated[int, Field(ge=100)]

    @model_validator(mode="after")
    def _decides(self) -> "GradeParams":
        if self.metric == "pattern" and not self.pattern:
            raise ValueError("metric: pattern needs a regular expression in answers.pattern, which is empty")
        return self
