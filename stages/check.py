"""Refuse a model or a dataset that is not there, and say which there are.   params.yaml -> nothing

Run by `dvc repro` before everything else, whenever one of the two names changed; without it
DVC would stop with the path it missed, after deleting the outputs of the first stage.
"""

from stages.lib.params import Section, read_params
from stages.lib.source import DATASETS, MODELS, find


class Params(Section):
    model: str
    dataset: str


def main() -> None:
    params = read_params(Params)
    find(MODELS, params.model)
    find(DATASETS, params.dataset)


if __name__ == "__main__":
    main()
