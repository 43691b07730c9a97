"""Types of weights in GGUF files: those that the `gguf` package can write, and how the others are had."""

from stages.lib.params import Mistake

TYPES = ("F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0")
LOW = TYPES[4:]  # whose embeddings and head are stored as Q8_0


def check_types(types: list[str]) -> None:
    """Refuse types of weights that cannot be written.

    Raises:
        Mistake: Says how K-quants are made of a file that can.
    """
    if wrong := [name for name in types if name not in TYPES]:
        raise Mistake(
            f"--types: {', '.join(wrong)}: expected {', '.join(TYPES)}; of a file in 16 bit llama.cpp makes K-quants "
            "itself: `llama-quantize X-F16.gguf X-Q4_K_M.gguf Q4_K_M`, or "
            "`ollama create NAME --quantize q4_K_M -f Modelfile.F16`"
        )


def sixteen_bits(stored: str) -> str:
    """Return the type of 16 bits that loses least of weights stored as `float32`, `float16` or `bfloat16`."""
    return "BF16" if stored == "bfloat16" else "F16"
