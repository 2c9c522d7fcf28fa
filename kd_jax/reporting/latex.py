"""A table as LaTeX, with the rules of booktabs, and by graphicx no wider than the text."""

import re
from collections.abc import Sequence

SPECIAL = {
    **{character: "\\" + character for character in "&%$#_{}"},
    "\\": "\\textbackslash{}",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
    "|": "\\textbar{}",
    '"': "\\textquotedbl{}",
    "±": "$\\pm$",
}
NUMBER = re.compile(r"[+-]?[\d,]*\.?\d+( ± [\d,.]+)?")


def table(header: Sequence[str], blocks: Sequence[Sequence[Sequence[str]]], caption: str, label: str) -> str:
    """A table whose first column stands to the left; a rule parts the blocks of its rows.

    >>> print(table(["Method", "Last"], [[["a_b", "+1.50 ± 0.25"]], [["c", ""]]], "50% of it.", "one"), end="")
    \\begin{table}
      \\caption{50\\% of it.}
      \\label{one}
      \\centering\\small\\setlength{\\tabcolsep}{3pt}
      \\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%
      \\begin{tabular}{lr}
        \\toprule
        Method & Last \\\\
        \\midrule
        a\\_b & $+1.50 \\pm 0.25$ \\\\
        \\midrule
        c &  \\\\
        \\bottomrule
      \\end{tabular}}
    \\end{table}
    """
    lines = ["    \\toprule", f"    {_row(header)}"]
    for rows in blocks:
        if rows:
            lines += ["    \\midrule", *(f"    {_row(row)}" for row in rows)]
    return "\n".join(
        [
            "\\begin{table}",
            f"  \\caption{{{escape(caption)}}}",
            f"  \\label{{{re.sub('[^A-Za-z0-9:-]', '-', label)}}}",
            "  \\centering\\small\\setlength{\\tabcolsep}{3pt}",
            "  \\resizebox{\\ifdim\\width>\\textwidth\\textwidth\\else\\width\\fi}{!}{%",
            f"  \\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
            *lines,
            "    \\bottomrule",
            "  \\end{tabular}}",
            "\\end{table}",
            "",
        ]
    )


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return "".join(SPECIAL.get(character, character) for character in " ".join(text.split()))


def _row(cells: Sequence[str]) -> str:
    return " & ".join(_cell(cell) for cell in cells) + " \\\\"


def _cell(text: str) -> str:
    if not NUMBER.fullmatch(text):
        return escape(text)
    return "$" + text.replace(",", "{,}").replace("±", "\\pm") + "$"
