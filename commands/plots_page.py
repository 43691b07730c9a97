"""Write the page on which `dvc plots show` and `dvc plots diff` draw.   -> .dvc/plots/page.html

Not a stage: run it again when requirements.txt names another vl-convert, and commit the page, which .dvc/config names.
It needs no network: Vega, Vega-Lite and Vega-Embed stand in it, as vl-convert ships them.
"""

from pathlib import Path

import vl_convert

from stages.lib.colours import COLOURS
from stages.lib.inputs import read_command

PAGE = Path(".dvc/plots/page.html")
SCRIPT = Path(__file__).with_suffix(".js")
ORDER = (  # of the panels, by their tables: what decides, why, how it came about; others come last
    "metrics/answers.csv",
    "plots/eval_results.csv",
    "metrics/documents.csv",
    "plots/human.csv",
    "plots/training_loss.csv",
    "plots/loss_by_context.csv",
    "plots/calibration.csv",
)
DASHES = [[1, 0], [5, 4], [1, 3], [9, 3, 2, 3]]  # of revisions, as the templates in .dvc/plots/ have them
SHAPES = ("M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0", "M0-4L4 4H-4Z", "M-4-4H4V4H-4Z", "M0-5L4 0L0 5L-4 0Z")  # likewise
ARMS = {
    "full": "is the base model, not quantised",
    "base": "is the base model, quantised as it was for tuning",
    "tuned": "is that with the adapter",
}


def render() -> str:
    """Return the page, in which DVC fills in the panels."""
    bundle = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  # its stub demands what may be left out
    scripts = bundle.replace("</script", r"<\/script")
    arms = "; ".join(f'<b style="color: {COLOURS[arm]}">&#9632; {arm}</b> {words}' for arm, words in ARMS.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
{{refresh_tag}}
<title>Plots</title>
<!-- Vega {vl_convert.get_vega_version()}, Vega-Lite and Vega-Embed, (c) University of Washington Interactive Data Lab
and contributors, BSD-3-Clause: https://github.com/vega -->
<script>(function () {{{scripts}}})();</script>
<script>const ORDER = {list(ORDER)}, DASHES = {DASHES}, SHAPES = {list(SHAPES)};
{SCRIPT.read_text(encoding="utf-8")}</script>
<style>
  body {{ margin: 1rem auto; padding: 0 1rem; max-width: 72rem; font: 1rem/1.5 system-ui, sans-serif; }}
  main {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1rem 2rem; }}
  section {{ min-width: 0; }}
  #revisions {{ position: sticky; top: 0; z-index: 1; margin: 0; padding: .3rem 0; background: white; }}
  #revisions span {{ white-space: nowrap; }}
  #revisions svg {{ vertical-align: middle; margin: 0 .3rem 0 1rem; }}
  h1 {{ font-size: 1.4rem; }}
  h2 {{ font-size: 1rem; margin: 0 0 .5rem; }}
  section > div {{ width: 100%; }}
  img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>Plots</h1>
<p id="revisions"></p>
<p>{arms}</p>
<main></main>
{{plot_divs}}
</body>
</html>
"""


def main() -> None:
    read_command(__doc__)
    PAGE.write_text(render(), encoding="utf-8")


if __name__ == "__main__":
    main()
