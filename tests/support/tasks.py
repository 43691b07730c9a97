"""What the harness returns, made up: tasks whose documents are numbers."""

from typing import Any

Values = dict[str, dict[str, list[Any]]]  # of samples, by task and metric


def results(
    values: Values,
    made: dict[str, dict[str, float]],
    better: dict[str, bool | None] | None = None,
    groups: dict[str, list[str]] | None = None,
    questions: list[str] | None = None,
    kind: str = "none",
) -> dict[str, Any]:
    """Return what the harness makes of samples' values: `made` has its own value of each task's or group's metrics."""
    samples = {}
    for task, metrics in values.items():
        number = len(next(iter(metrics.values())))
        asked = questions or [f"{task}, question {n}" for n in range(number)]
        samples[task] = [
            {
                "doc_id": n,
                "doc": {"id": n, "text": asked[n]},
                "target": "right",
                "arguments": [(f"An example.\n\n{asked[n]}", " left"), (f"An example.\n\n{asked[n]}", " right")],
                "resps": [[(-1.0, True)], [(-2.0, False)]],
                "filtered_resps": [(-1.0, True), (-2.0, False)],
                "filter": kind,
                "metrics": list(metrics),
                "doc_hash": f"d{n}",
                "prompt_hash": f"p{n}",
                "target_hash": "t",
                "question": asked[n],
                **{metric: found[n] for metric, found in metrics.items()},
            }
            for n in range(number)
        ]
    rows = {
        name: {"alias": name, "sample_len": 9}
        | {f"{metric},{kind}": value for metric, value in metrics.items()}
        | {f"{metric}_stderr,{kind}": 0.1 for metric in metrics}
        for name, metrics in made.items()
    }
    directions = {name: {metric: (better or {}).get(metric, True) for metric in row} for name, row in made.items()}
    return {
        "results": rows, "samples": samples, "higher_is_better": directions, "group_subtasks": groups or {},
    }  # fmt: skip


def right(marks: str, task: str = "t") -> dict[str, Any]:
    """Return the results of a task whose samples are right where a mark is +."""
    found = [float(mark == "+") for mark in marks]
    return results({task: {"acc": found}}, {task: {"acc": sum(found) / len(found)}})
