"""Git, asked by its own program."""

import subprocess

from stages.lib.params import Mistake


def git(*arguments: str) -> str:
    """Return what Git says.

    Raises:
        Mistake: It refuses; with its reason.
    """
    ran = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise Mistake(f"git {' '.join(arguments[:2])}: {ran.stderr.strip()}")
    return ran.stdout
