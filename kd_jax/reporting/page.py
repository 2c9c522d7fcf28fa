"""A page of text, tables and figures, as one HTML file without links to elsewhere, and as Markdown.

Its one script sorts tables and says where one scrolls; the page reads without it, and runs no other.
"""

import base64
import hashlib
import html as escapes
import re
from collections.abc import Sequence
from typing import NamedTuple


class Table(NamedTuple):
    """Cells are plain text; those of every column but the first stand to the right where `numbers`."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: bool = True


class Figures(NamedTuple):
    """Plots side by side where there is room, and what their marks mean."""

    svgs: Sequence[str]
    legend: Sequence[tuple[str, str]] = ()  # (SVG of the mark, label)


class Image(NamedTuple):
    """A PNG."""

    png: bytes
    title: str


class Folded(NamedTuple):
    """Blocks that are seen when their title is clicked."""

    title: str
    blocks: Sequence["Block"]


Block = str | Table | Figures | Image | Folded  # a string is a paragraph


class Section(NamedTuple):
    """A heading and what stands below it."""

    title: str
    blocks: Sequence[Block]
    half: bool = False  # of the width is enough, where that is large


LONG = 40  # characters; cells of more get room
LIGHT = "color-scheme: light; --text: #1b1f24; --back: #ffffff; --line: #d0d7de; --soft: #59636e; --shade: #0003;"
DARK = "color-scheme: dark; --text: #e6e8eb; --back: #14171a; --line: #3a4149; --soft: #9aa4af; --shade: #fff3;"
STYLE = (
    f"""
:root {{ {LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
"""
    + """
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 110rem; padding: 1rem; color: var(--text); background: var(--back);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; margin: 0 0 .5rem; }
@media screen and (min-width: 75rem) {
  main { display: grid; grid-template-columns: 1fr 1fr; column-gap: 2rem; }
  section { grid-column: 1 / -1; min-width: 0; }
  .half { grid-column: auto; }
}
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid var(--line); }
p { max-width: 46rem; margin: .5rem 0; }
nav { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: 1rem 0; }
a { color: inherit; }
/* A shadow at the sides to which a table goes on; what lies over it moves with the table. */
.scroll { overflow-x: auto; margin: .75rem 0; max-width: max-content; background:
  linear-gradient(to right, var(--back) 30%, transparent) left / 3rem 100% no-repeat local,
  linear-gradient(to left, var(--back) 30%, transparent) right / 3rem 100% no-repeat local,
  linear-gradient(to right, var(--shade), transparent) left / 1rem 100% no-repeat scroll,
  linear-gradient(to left, var(--shade), transparent) right / 1rem 100% no-repeat scroll; }
.more::before { content: "scrolls sideways →"; position: sticky; left: 0; color: var(--soft); font-size: .8rem; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: .3rem .75rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
th button { all: unset; cursor: pointer; position: relative; padding-right: .8rem; }
th button:focus-visible { outline: 2px solid; outline-offset: 2px; }
th button::after { content: "↕"; opacity: .5; position: absolute; right: 0; bottom: 0; }
th[aria-sort=ascending] button::after { content: "↑"; opacity: 1; }
th[aria-sort=descending] button::after { content: "↓"; opacity: 1; }
td:first-child { min-width: min(10rem, 35vw); }
td.long { min-width: min(16rem, 55vw); }
.numbers th:not(:first-child), .numbers td:not(:first-child) { padding-left: .4rem; text-align: right; }
.numbers td:first-child { min-width: min(10rem, 35vw); overflow-wrap: anywhere; }
.numbers tr > :first-child { position: sticky; left: 0; background: var(--back); }
.numbers td:not(:first-child) { white-space: nowrap; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1rem; }
.figures svg { display: block; width: 100%; max-width: 30rem; height: auto; font-family: inherit; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; margin: .75rem 0; list-style: none;
  font-size: .875rem; }
.legend li { display: flex; align-items: center; gap: .4rem; }
.legend svg { flex: none; }
img { display: block; max-width: max(100%, 48rem); height: auto; background: #fff; }
figure { margin: .75rem 0; }
figcaption, .soft { color: var(--soft); font-size: .875rem; }
summary { cursor: pointer; margin: .75rem 0; }
@page { size: A4 landscape; margin: 12mm; }
@page tall { size: A4 portrait; }
@media print {
  body { padding: 0; font-size: .8rem; }
  nav, .more::before, th button::after { display: none; }
  p { max-width: none; }
  h2, p:has(+ .scroll, + .legend, + .figures), .legend { break-after: avoid; }
  p, tr, .figures svg { break-inside: avoid; }
  .scroll { overflow: visible; max-width: none; background: none; }
  table { font-size: .7rem; }
  td.long { min-width: 0; }
  .numbers tr > :first-child { position: static; background: none; }
  .numbers td:not(:first-child) { white-space: normal; }
  th button { display: inline-block; width: min-content; min-width: 5em; padding: 0; }
  .figures { grid-template-columns: repeat(3, 1fr); }
  figure { page: tall; break-inside: avoid; }
  img { max-width: 100%; max-height: 255mm; }
  details::details-content { display: block; content-visibility: visible; }
}
"""
)
SCRIPT = r"""
const number = text => /^[+-]?[\d,]*\.?\d+%?(\s±\s[\d.,]+)?$/.test(text) ? parseFloat(text.replaceAll(",", "")) : NaN;
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  if (body.rows.length > 1) heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.title = "sort";
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const rows = [...body.rows].map(row => [row.cells[column].textContent, row]);
      const numeric = rows.every(([text]) => !text || !isNaN(number(text)));
      const before = head.getAttribute("aria-sort");  // at first the highest number, or A
      const up = before ? before == "descending" : !numeric;
      const compare = numeric ? (a, b) => number(a) - number(b) : (a, b) => a.localeCompare(b, "en", {numeric: true});
      rows.sort(([a], [b]) => !a - !b || (up ? compare(a, b) : compare(b, a)));
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", up ? "ascending" : "descending");
      body.append(...rows.map(([, row]) => row));
    };
  });
}
const watch = new ResizeObserver(all => all.forEach(({target: inner}) => {
  inner.parentNode.classList.toggle("more", inner.parentNode.scrollWidth > inner.parentNode.clientWidth);
}));
document.querySelectorAll(".scroll > *").forEach(inner => watch.observe(inner));
"""


def html(title: str, sections: Sequence[Section]) -> str:
    """The page as one HTML file."""
    links, body = [], []
    for number, section in enumerate(sections, 1):
        name, half = _escape(section.title), " class=half" * section.half
        links.append(f'<a href="#{number}">{name}</a>')
        blocks = "".join(map(_html, section.blocks))
        body.append(f'<section{half}><h2 id="{number}">{name}</h2>{blocks}</section>\n')
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    allowed = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{allowed}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><title>{_escape(title)}</title><style>{STYLE}</style></head>\n'
        f"<body><h1>{_escape(title)}</h1><nav>{''.join(links)}</nav>\n<main>{''.join(body)}</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The page as Markdown; figures and images are in the HTML file only."""
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts += [f"## {_plain(section.title)}", *(text for block in section.blocks if (text := _markdown(block)))]
    return "\n\n".join(parts) + "\n"


def count(number: int, what: str) -> str:
    """A number of things in words.

    >>> count(1, "run"), count(2, "run")
    ('1 run', '2 runs')
    """
    return f"{number} {what}" + ("" if number == 1 else "s")


def _html(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{_escape(block)}</p>"
    if isinstance(block, Table):
        rows = "".join(_row("td", row) for row in block.rows)
        kind = ' class="numbers"' if block.numbers else ""
        table = f"<table{kind}><thead>{_row('th', block.header)}</thead><tbody>{rows}</tbody></table>"
        return f'<div class="scroll" tabindex="0">{table}</div>'
    if isinstance(block, Figures):
        keys = "".join(f"<li>{mark}<span>{_escape(label)}</span></li>" for mark, label in block.legend)
        legend = f'<ul class="legend">{keys}</ul>' if keys else ""
        return f'{legend}<div class="figures">{"".join(block.svgs)}</div>'
    if isinstance(block, Image):
        source = base64.b64encode(block.png).decode()
        picture = f'<img alt="{_escape(block.title)}" src="data:image/png;base64,{source}">'
        caption = f"<figcaption>{_escape(block.title)}</figcaption>"
        return f'<figure>{caption}<div class="scroll" tabindex="0">{picture}</div></figure>'
    return f"<details><summary>{_escape(block.title)}</summary>{''.join(map(_html, block.blocks))}</details>"


def _row(tag: str, cells: Sequence[str]) -> str:
    kinds = [tag + ' class="long"' * (len(cell) > LONG) for cell in cells]
    # A long name may be broken after an underscore; a number and its deviation are not broken apart.
    texts = [_escape(cell).replace("_", "_<wbr>").replace(" ± ", "&nbsp;±&nbsp;") for cell in cells]
    return "<tr>" + "".join(f"<{k}>{text}</{tag}>" for k, text in zip(kinds, texts, strict=True)) + "</tr>"


def _markdown(block: Block) -> str:
    if isinstance(block, str):
        return _plain(block)
    if isinstance(block, Table):
        rows = [block.header, ["---"] * len(block.header), *block.rows]
        return "\n".join("| " + " | ".join(_plain(cell) for cell in row) + " |" for row in rows)
    if isinstance(block, Folded):
        return "\n\n".join([f"{_plain(block.title)}:", *map(_markdown, block.blocks)])
    return "(On the page: a picture.)" if isinstance(block, Image) else "(On the page: figures.)"


def _escape(text: str) -> str:
    return escapes.escape(text)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is, on one line."""
    text = " ".join(text.split())
    text = re.sub(
        r"[\\`*\[\]|~]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text
    )  # an underscore inside a word means nothing
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
