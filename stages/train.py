"""Fine-tune a LoRA adapter on a frozen, quantised base model.   data/prepared, models/base -> models/adapter

Run by `dvc repro train`; alone: `python -m stages.train`. Killed at any moment, it goes on where it was. It starts the
processes that run.processes asks for itself, or is one of those that `accelerate launch` or `torchrun` started.
"""

import errno

from stages.lib.inputs import Inputs, read_command
from stages.lib.params import Mistake, read_params
from stages.lib.results import results_kept
from stages.lib.sources.source import MODELS
from stages.lib.training.processes import (
    Untracked,
    die_with_dvc,
    take_gpu,
    tell_mistakes,
    work_in_processes,
    workers_to_start,
)
from stages.lib.training.recipe import Recipe


class Params(Recipe):
    run: Untracked


def main() -> None:
    params = read_params(Params, command=read_command(__doc__, ["model"]))
    if number := workers_to_start(params.run.processes):
        work_in_processes(number)
    take_gpu()

    from stages.lib.data.documents import PREPARED  # ten seconds, which no mistake above should take
    from stages.lib.training.tuning import tune

    inputs = Inputs(params, PREPARED / "train.parquet", PREPARED / "validation.parquet", MODELS / params.model)
    tune(params, inputs, params.run.checkpoint_minutes)


if __name__ == "__main__":
    die_with_dvc()
    with tell_mistakes():
        try:
            with results_kept():
                main()
        except KeyboardInterrupt:
            raise Mistake("stopped; run the same again to go on from the last checkpoint") from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise Mistake(f"no room on the disk: {error}; make some, run again to go on from the last state") from None
