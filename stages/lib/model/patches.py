"""Patches: attributes of other people's objects replaced for a while, and the private names of libraries relied on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch._functorch import config as functorch
from transformers import Trainer, TrainingArguments

# A test fails when a library renames one of these, or no longer uses it.
PRIVATE = {
    Trainer: ("_get_train_sampler", "_save", "_save_checkpoint"),
    TrainingArguments: ("_n_gpu",),
    nn.Module: ("_compiled_call_impl",),
    functorch: ("activation_memory_budget",),
}
UNSET = object()


@contextmanager
def replaced(owner: object, **values: Any) -> Iterator[None]:
    """Give attributes of an object other values for a while; afterwards it has what it had, or nothing of its own.

    Patches of one attribute may be nested.
    """
    own = vars(owner)
    before = {name: own.get(name, UNSET) for name in values}
    for name, value in values.items():
        setattr(owner, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is UNSET:
                delattr(owner, name)
            else:
                setattr(owner, name, value)
