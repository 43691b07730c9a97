"""Patches: attributes of other people's objects replaced for a while, and the private names of libraries relied on."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Of modules, and of their classes. A test fails when a library renames one of these, or no longer uses it.
PRIVATE = {
    "transformers.Trainer": ("_get_train_sampler", "_save", "_save_checkpoint"),
    "transformers.TrainingArguments": ("_n_gpu",),
    "torch.nn.Module": ("_compiled_call_impl",),
    "torch._functorch.config": ("activation_memory_budget",),
    "torch._dynamo": ("maybe_mark_dynamic",),
}
UNSET = object()
TORCH_COMPILE = torch.compile


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


def compiled_when_called(function: Callable | None = None, **options: Any) -> Callable:
    """Do what `torch.compile` does, at the first call: until then PyTorch's compiler need not be imported."""
    if function is None:
        return functools.partial(compiled_when_called, **options)
    compiled = functools.cache(lambda: TORCH_COMPILE(function, **options))

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        return compiled()(*given, **named)

    return call
