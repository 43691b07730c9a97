"""Parameters of prepare, as they ship but for what a test changes."""

from conftest import REPOSITORY

from stages.lib.data.protocol import PrepareParams
from stages.lib.params import read_yaml

SHIPPED = read_yaml(REPOSITORY / "params.yaml")["prepare"]


def prepare_params(**changes: float | str) -> PrepareParams:
    return PrepareParams.model_validate(SHIPPED | changes)
