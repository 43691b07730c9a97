"""Write into dvc.yaml which files of code each stage runs.   stages/ -> dvc.yaml

`make deps` runs it; a test compares. Code is a dependency like data: a stage runs again when a file that it imports, at
its top or inside a function, or a file that such a file imports, has changed.
"""

import ast
import re
from pathlib import Path

from stages.lib.inputs import read_command

PIPELINE = Path("dvc.yaml")


def imports(file: Path) -> set[Path]:
    """Find the files of this project that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        paths = (Path(*name.split(".")).with_suffix(".py") for name in names if name.startswith("stages"))
        found |= {path for path in paths if path.exists()}
    return found


def closure(file: Path) -> set[Path]:
    """Find all the files of this project that run when a file does, itself included."""
    found: set[Path] = set()
    new = {file}
    while new:
        found |= new
        new = {path for known in new for path in imports(known)} - found
    return found


def code_of(command: str) -> list[str]:
    """List the code that `python -m stages.name …` runs: the stage, then what it imports."""
    stage = Path(*re.findall(r"stages\.\w+", command)[0].split(".")).with_suffix(".py")
    return [stage.as_posix(), *sorted(path.as_posix() for path in closure(stage) - {stage})]


def with_code(pipeline: str) -> str:
    """Return the text of a dvc.yaml in which the lists of code are right; all else stays as it is."""
    lines: list[str] = []
    command = ""
    for line in pipeline.splitlines(keepends=True):
        if line.lstrip().startswith("cmd:"):
            command = line
        if not (entry := re.fullmatch(r"( *- )stages/\S+\.py\n", line)):
            lines.append(line)
        elif command:  # the first of a stage's files: all stand here
            lines += [f"{entry[1]}{path}\n" for path in code_of(command)]
            command = ""
    return "".join(lines)


def main() -> None:
    read_command(__doc__)
    PIPELINE.write_text(with_code(PIPELINE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
