"""Refuse a model or a dataset that is not there, and say which there are.   params.yaml -> nothing

Run by `dvc repro` before everything else, whenever one of the names changed; without it
DVC would stop with the path it missed, after deleting the outputs of the first stage.
"""

from stages.lib.inputs import Inputs, read_command
from stages.lib.params import Section, read_params
from stages.lib.sources.source import DATASETS, MODELS, find


class Params(Section):
    model: str
    dataset: str
    also: list[str]


def main() -> None:
    params = read_params(Params, command=read_command(__doc__, ["model", "dataset"]))
    inputs = Inputs(params)
    find(MODELS, params.model)
    for name in (params.dataset, *params.also):
        find(DATASETS, name)
    inputs.confirm()


if __name__ == "__main__":
    main()
