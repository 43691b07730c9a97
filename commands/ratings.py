"""Open the rating sheet in the browser, and put the answers it saves where they belong.   data/ratings/answers/

Not a stage: `make rate` runs it, then the pipeline. It waits for a download; Ctrl-C ends it.
"""

import argparse
import json
import shutil
import time
import webbrowser
from pathlib import Path

from stages.lib.params import Mistake
from stages.lib.people.judgement import ANSWERS, KEY, RATINGS, Key, rater_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--downloads", type=Path, default=Path.home() / "Downloads", help="where the browser saves files"
    )
    downloads = parser.parse_args().downloads
    page = RATINGS / "sheet.html"
    if not page.exists():
        raise Mistake(f"{page}: not there yet; `dvc repro sheet` makes it")
    if not downloads.is_dir():
        raise Mistake(f"{downloads}: no such folder; say with --downloads where the browser saves files")
    sheet = Key.from_json(KEY.read_text(encoding="utf-8")).sheet
    known = set(downloads.glob("ratings-*.json"))
    print(f"{page}: rate, then download your answers; waiting for them in {downloads} (Ctrl-C ends this)")
    webbrowser.open(page.resolve().as_uri())
    try:
        print(f"thank you: {collect(downloads, known, sheet)}")
    except KeyboardInterrupt:
        raise Mistake(f"stopped; put what was downloaded into {ANSWERS}/ yourself") from None


def collect(downloads: Path, known: set[Path], sheet: str) -> Path:
    """Wait for answers to the sheet that were not there before, and move them to the others."""
    while True:
        for file in sorted(set(downloads.glob("ratings-*.json")) - known):
            try:
                found = json.loads(file.read_text(encoding="utf-8"))
                if found["sheet"] == sheet:
                    return Path(shutil.move(file, ANSWERS / f"ratings-{rater_of(found['rater'])}.json"))
            except (ValueError, KeyError, TypeError):  # not yet whole, or something else
                continue
        time.sleep(0.5)


if __name__ == "__main__":
    main()
