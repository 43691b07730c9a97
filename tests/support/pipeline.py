"""dvc.yaml with its loops and names written out."""

import json

from conftest import REPOSITORY, TEXT

from stages.lib.params import read_yaml


def expand(stages: dict) -> dict[str, dict]:
    """Write out the stages of a `foreach` or `matrix`, each with its `${…}` filled in."""

    def fill(node, values: dict[str, str]):
        if isinstance(node, dict):
            return {fill(key, values): fill(value, values) for key, value in node.items()}
        if isinstance(node, list):
            return [fill(child, values) for child in node]
        for name, value in values.items():
            node = node.replace(f"${{{name}}}", value) if isinstance(node, str) else node
        return node

    expanded = {}
    for name, stage in stages.items():
        if "matrix" in stage:
            for number, arm in enumerate(stage["matrix"]["arm"]):
                values = {"item.dataset": "other", **{f"item.arm.{field}": value for field, value in arm.items()}}
                expanded[f"{name}@other-arm{number}"] = fill(stage, values)
        elif stage.get("foreach") == "${also}":
            expanded[f"{name}@other"] = fill(stage["do"], {"item": "other"})
        elif "foreach" in stage:
            for key, item in stage["foreach"].items():
                values = {"key": key, **{f"item.{field}": value for field, value in item.items()}}
                expanded[f"{name}@{key}"] = fill(stage["do"], values)
        else:
            expanded[name] = stage
    return expanded


TEMPLATES = expand(read_yaml(REPOSITORY / "dvc.yaml")["stages"])
STAGES = json.loads(json.dumps(TEMPLATES).replace("${model}", TEXT["model"]).replace("${dataset}", TEXT["dataset"]))
