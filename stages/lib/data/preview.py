"""Preview: a page that shows documents as the model reads them, before anything is trained."""

import html
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from tokenizers import Tokenizer

from stages.lib.characters import visible
from stages.lib.data.documents import PREPARED, Document

PREVIEW = PREPARED / "preview.html"
SHOWN = 10  # documents
LONGEST = 2000  # tokens that are shown of each
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>What the model reads and learns</title>
<style>
  body {{ margin: 0 auto; max-width: 62rem; padding: 1rem; color: #1a1a1a; background: #fff;
         font: 1rem/1.55 system-ui, sans-serif; }}
  h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1rem; margin: 1.6rem 0 .3rem; overflow-wrap: anywhere; }}
  pre {{ margin: 0; padding: .7rem .9rem; border: 1px solid #767676; border-radius: .4rem; font-size: .875rem;
        white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }}
  mark {{ background: #ffd9b8; color: inherit; border-bottom: 2px solid #d55e00; }}
  code {{ padding: 0 .25rem; border-radius: .25rem; background: #e4e7eb; font-size: .8rem; }}
  mark code {{ background: #f7b27c; }}
  table {{ border-collapse: collapse; }} td, th {{ padding: .2rem .7rem .2rem 0; text-align: left; }}
  td {{ font-variant-numeric: tabular-nums; }}
</style>
</head>
<body>
<h1>What the model reads and learns</h1>
<p>It reads everything below, and learns to write what is <mark>marked</mark>; no loss and no score counts anything
else. Special tokens are shown as <code>&lt;…&gt;</code>. Look for answers that lack an end, for marks in the wrong
place, and for what should not be there.</p>
{summary}
{documents}
</body>
</html>
"""


def render_preview(documents: list[Document], tokenizer: Tokenizer, facts: dict[str, str]) -> str:
    """Write a page, complete in itself, of the first few documents.

    Args:
        documents: Of one split.
        tokenizer: Theirs.
        facts: What is said above them, by name.
    """
    rows = "".join(f"<tr><th>{html.escape(name)}</th><td>{html.escape(fact)}</td></tr>" for name, fact in facts.items())
    shown = (_section(document, tokenizer) for document in documents[:SHOWN])
    return PAGE.format(summary=f"<table>{rows}</table>", documents="".join(shown))


def _section(document: Document, tokenizer: Tokenizer) -> str:
    lengths = f"{len(document.tokens):,} tokens, {document.targets.sum():,} of them learned"
    return f"<h2>{_escaped(document.id)}: {lengths}</h2>\n<pre>{''.join(_pieces(document, tokenizer))}</pre>\n"


def _pieces(document: Document, tokenizer: Tokenizer) -> Iterator[str]:
    special = {id for id, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    tokens, targets = document.tokens[:LONGEST], document.targets[:LONGEST]
    kinds = zip(targets.tolist(), np.isin(tokens, list(special)).tolist())
    for (target, control), run in groupby(zip(kinds, tokens.tolist()), key=lambda pair: pair[0]):
        ids = [id for _, id in run]
        text = tokenizer.decode(ids, skip_special_tokens=False)
        names = "".join(f"<code>{_escaped(str(tokenizer.id_to_token(id)))}</code>" for id in ids)
        shown = names if control else _escaped(text)
        yield f"<mark>{shown}</mark>" if target else shown
    if len(document.tokens) > LONGEST:
        yield f"<code>… and {len(document.tokens) - LONGEST:,} tokens more</code>"


def _escaped(text: str) -> str:
    """Escape a text for HTML, after what is invisible in it has been made visible."""
    return html.escape(visible(text))
