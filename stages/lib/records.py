"""Records: results as functions return them, and as the JSON files in metrics/ hold them."""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter

R = TypeVar("R")


class Interval(NamedTuple):
    """A number and the bounds of its 95 % confidence interval."""

    value: float
    low: float
    high: float


def to_metrics(record: Any) -> dict[str, Any]:
    """Lay out a dataclass as metrics, in the order of its fields.

    An interval `x` becomes `x`, `x_low` and `x_high`. A field that is None by default is left out where it is None.
    """
    metrics: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Interval):
            metrics |= {field.name: value.value, f"{field.name}_low": value.low, f"{field.name}_high": value.high}
        elif dataclasses.is_dataclass(value):
            metrics[field.name] = to_metrics(value)
        elif value is not None or field.default is not None:
            metrics[field.name] = value
    return metrics


def read_record(kind: type[R], path: Path) -> R:
    """Read metrics that `to_metrics` laid out of a record without intervals."""
    return TypeAdapter(kind).validate_python(json.loads(path.read_text(encoding="utf-8")))
