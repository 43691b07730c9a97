"""Records: results as functions return them, and as the JSON files in metrics/ hold them."""

import dataclasses
import math
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter

R = TypeVar("R")


class Interval(NamedTuple):
    """A number and the bounds of its 95 % confidence interval."""

    value: float
    low: float  # -inf where nothing bounds it, and `high` inf: from fewer than six units
    high: float

    def verdict(self, none: float = 0.0, more_is_better: bool = True) -> str:
        """Say what may be said of a change: `none` is the value of no change."""
        if self.low > none:
            return "better" if more_is_better else "worse"
        if self.high < none:
            return "worse" if more_is_better else "better"
        return "the same" if self.low == self.high == none else "cannot tell"

    def bounds(self, form: str = ".4f") -> str:
        """Write its bounds, each in a format."""
        if math.isinf(self.high):  # the low one of a ratio is then 0
            return "none from fewer than six"
        return f"{self.low:{form}} to {self.high:{form}}"


class Change(NamedTuple):
    """A change, and how often chance alone makes one as large."""

    interval: Interval
    p_value: float


def to_metrics(record: Any) -> dict[str, Any]:
    """Lay out a dataclass as metrics, in the order of its fields.

    An interval `x` becomes `x`, `x_low` and `x_high`, null where nothing bounds it. A field that is None by default is
    left out where it is None.
    """
    metrics: dict[str, Any] = {}
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if isinstance(value, Interval):
            bounds = {f"{field.name}_low": value.low, f"{field.name}_high": value.high}
            metrics |= {field.name: value.value} | {key: x if math.isfinite(x) else None for key, x in bounds.items()}
        elif dataclasses.is_dataclass(value):
            metrics[field.name] = to_metrics(value)
        elif value is not None or field.default is not None:
            metrics[field.name] = value
    return metrics


def read_record(kind: type[R], metrics: dict[str, Any]) -> R:
    """Read metrics that `to_metrics` laid out of a record without intervals."""
    return TypeAdapter(kind).validate_python(metrics)


def read_interval(metrics: dict[str, Any], name: str) -> Interval:
    """Read an interval that `to_metrics` laid out."""
    low, high = metrics[f"{name}_low"], metrics[f"{name}_high"]
    return Interval(metrics[name], -math.inf if low is None else low, math.inf if high is None else high)
