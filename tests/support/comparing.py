"""Tables of scores, as evaluate writes them, and what compares them."""

import numpy as np
import pandas as pd

from stages.lib.scoring.protocol import CompareParams

PARAMS = CompareParams(seed=1, resamples=1000, margin=0.01)


def scores(nll_per_token: np.ndarray, tokens: np.ndarray) -> pd.DataFrame:
    """Make scores of documents, half of whose tokens are right, all held 70 % likely."""
    ids = [str(number) for number in range(len(tokens))]
    table = pd.DataFrame(
        {"id": ids, "title": ids, "group": "", "tokens": tokens, "nll": nll_per_token * tokens, "top1": tokens * 0.5}
    )
    for name, values in (("tokens", tokens), ("confidence", 0.7 * tokens), ("hits", 0.5 * tokens)):
        table[f"bin_{name}"] = [np.array([0.0, value]) for value in values]
    return table
