"""Write the page on which `dvc plots show` draws, so that it needs no network.   -> .dvc/plots/page.html

Not a stage: `make` runs it when it sets up the environment. The page holds Vega, Vega-Lite and Vega-Embed
as vl-convert ships them, where DVC's own page asks a server on the Internet for them; .dvc/config.local names it.
"""

import subprocess
from pathlib import Path

import vl_convert

from stages.lib.inputs import read_command

PAGE = Path(".dvc/plots/page.html")


def main() -> None:
    read_command(__doc__)
    PAGE.parent.mkdir(exist_ok=True)
    bundle = vl_convert.javascript_bundle()  # pyright: ignore[reportCallIssue]  # its stub demands what may be left out
    scripts = bundle.replace("</script", r"<\/script")
    PAGE.write_text(
        f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
{{refresh_tag}}
<title>Plots</title>
<script>(function () {{{scripts}}})();</script>
<style>
  body {{ margin: 1rem auto; max-width: 72rem; font: 1rem/1.5 system-ui, sans-serif; }}
  img {{ max-width: 100%; }}
  table {{ border-spacing: 1rem; }}
</style>
</head>
<body>
{{plot_divs}}
</body>
</html>
""",
        encoding="utf-8",
    )
    setting = ["plots.html_template", PAGE.relative_to(".dvc").as_posix()]
    subprocess.run(["dvc", "config", "--local", *setting], check=True)


if __name__ == "__main__":
    main()
