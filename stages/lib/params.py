"""Parameters: params.yaml read strictly, every mistake reported at once."""

import re
from argparse import Namespace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML, YAMLError

PARAMS = Path("params.yaml")
PIPELINE = Path("dvc.yaml")
CHECKED = Path("data/checked")  # what `check` writes, always the same: it stands before all other stages
NAMES = ("model", "dataset")  # of folders; DVC fills them into paths and commands when it begins
KIND = (
    r"bool|constrained-int|int|list\[.*\]|literal\[.*\]"  # what pydantic adds to the name of a value of several kinds
)


class Mistake(SystemExit):
    """A mistake of the user's: what was expected, what was found, where, and what to do.

    It is a `SystemExit`, so one that nobody catches ends the program with its message on
    stderr and status 1, and without a traceback.
    """


class Section(BaseModel):
    """A part of a YAML file: no unknown keys, no conversions, no changes after reading."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


Schema = TypeVar("Schema", bound=Section)


def read_yaml(path: Path) -> Any:
    """Parse a YAML 1.2 file, in which `3e-05` is a number (in YAML 1.1 it is a string).

    Raises:
        Mistake: The file is missing or is not YAML.
    """
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        raise Mistake(f"{path}: there is no such file here; run from the top of the project") from None
    except UnicodeDecodeError as error:
        raise Mistake(f"{path}: not UTF-8: {error}") from None


def parse_yaml(text: str, where: Path) -> Any:
    """Parse the text of a YAML file, as `read_yaml` does."""
    try:
        return YAML(typ="safe").load(text)
    except YAMLError as error:
        raise Mistake(f"{where}: not YAML: {' '.join(str(error).split())}") from None


def check(values: Any, schema: type[Schema], where: Path) -> Schema:
    """Validate `values` against `schema`.

    Raises:
        Mistake: One line for each value that is wrong, missing or unknown.
    """
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [line for detail in _join_choices(error.errors()) for line in _explain(detail).splitlines()]
        raise Mistake("\n".join(f"{where}: {line}" for line in lines)) from None


def read_params(
    schema: type[Schema], path: Path = PARAMS, pipeline: Path = PIPELINE, command: Namespace | None = None
) -> Schema:
    """Read from params.yaml the sections that `schema` names.

    Args:
        schema: One field for each section or name that the stage uses.
        path: The parameters.
        pipeline: The dvc.yaml whose stages say which sections exist at all.
        command: What the command line said, perhaps names as DVC read them when it began.

    Raises:
        Mistake: One line for each value that is wrong, missing or unknown, or else for each name that the command line
            has otherwise.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise Mistake(f"{path}: expected sections such as `lora:`, found {values!r}")
    known = set(_tracked(read_yaml(pipeline)))
    if unknown := sorted(set(values) - known):
        raise Mistake(f"{path}: {', '.join(unknown)}: no stage reads this; there are {', '.join(sorted(known))}")
    params = check({name: value for name, value in values.items() if name in schema.model_fields}, schema, path)
    if changed := [
        f"{path}: {name} is {getattr(params, name)!r}, and was {told!r} when the command was given; "
        "put it back or run again"
        for name in NAMES
        if (told := getattr(command, name, None)) not in (None, getattr(params, name, None))
    ]:
        raise Mistake("\n".join(changed))
    return params


def _tracked(node: Any) -> list[str]:
    """List the parameters that the stages of a dvc.yaml declare."""
    if isinstance(node, list):
        return [name for child in node for name in _tracked(child)]
    if not isinstance(node, dict):
        return []
    own = node.get("params", [])
    declared = [own] if isinstance(own, str) else [name for name in own if not name.startswith("${")]
    return declared + [name for child in node.values() for name in _tracked(child)]


def _join_choices(details: list[Any]) -> list[Any]:
    """Make one mistake of those that a value of several allowed kinds, such as a number or `auto`, gives a kind."""
    joined: dict[Any, Any] = {}
    for detail in details:
        known = [number for number, part in enumerate(detail["loc"]) if not re.fullmatch(KIND, str(part))]
        place = detail["loc"][: len(known)]
        if len(known) < len(detail["loc"]) and place in joined:
            joined[place]["msg"] += " or " + detail["msg"].removeprefix("Input should be ")
        else:
            joined[place] = {**detail, "loc": place}
    return list(joined.values())


def _explain(error: Any) -> str:
    name = ".".join(map(str, error["loc"])) or "the file"
    if error["type"] == "model_type":
        return f"{name}: expected names and values such as `name: value`, found {error['input']!r}"
    if error["type"] == "extra_forbidden":
        return f"{name}: unknown parameter"
    if error["type"] == "missing":
        return f"{name}: missing"
    if error["type"] == "value_error":  # values that disagree, each disagreement on a line
        lines = error["msg"].removeprefix("Value error, ").splitlines()
        return "\n".join(f"{name}: {line}" if error["loc"] else line for line in lines)
    return f"{name}: {error['msg']}, found {error['input']!r}"
