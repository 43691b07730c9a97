"""Arithmetic: what results were computed in, and on what. Rounding alone moves them, so two kinds do not compare.

SmolLM2-135M in 4 bit has 1.4 % more perplexity in bf16 on a GPU than in fp32 on a CPU.
"""

from collections.abc import Mapping

from stages.lib.params import Mistake


def arithmetic_of(precision: str) -> str:
    """Return the part of a precision that no parameter decides, such as `fp32 on cpu`; nothing where it is not said."""
    return precision.partition(", computed in ")[2]


def require_one_arithmetic(precisions: Mapping[str, str], stages: str = "evaluate generate") -> None:
    """Refuse to compare arms that were computed unlike: some on this machine, others taken from DVC's cache.

    Args:
        precisions: By arm, as metrics name them.
        stages: What computed them and what else would be, as dvc.yaml names them.

    Raises:
        Mistake: They differ in arithmetic; it says how to compute all of them here.
    """
    found = {arm: arithmetic_of(precision) for arm, precision in precisions.items()}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{arm} in {arithmetic}" for arm, arithmetic in found.items())
        raise Mistake(
            f"computed in different arithmetic: {told}; rounding alone makes a difference, so compute all of them "
            f"here: `dvc repro -f -s {stages}`, then repeat your command"
        )
