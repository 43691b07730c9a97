"""Lines: files of JSON, a row a line."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def write_lines(rows: Iterable[dict[str, Any]], file: Path) -> None:
    """Write a row a line, as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    file.write_text(lines or "\n", encoding="utf-8")  # DVC warns of empty files


def read_lines(file: Path) -> list[dict[str, Any]]:
    """Read what `write_lines` wrote."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n") if line]
