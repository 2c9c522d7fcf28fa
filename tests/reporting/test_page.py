"""One page in two forms."""

import base64
import hashlib
import re

import pytest

from kd_jax.reporting import page

HOSTILE = "<script>1|2</script> & *[x](y)*"
BLOCKS = {
    "text": HOSTILE,
    "table": page.Table((HOSTILE,), [(HOSTILE,)]),
    "legend": page.Figures([], [("", HOSTILE)]),
    "image": page.Image(b"", HOSTILE),
    "folded": page.Folded(HOSTILE, [HOSTILE]),
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_text_is_text_in_html(block):
    text = page.html("title", [page.Section(HOSTILE, [block])])
    assert text.count("<script") == 1  # the page's own
    assert "&lt;script&gt;1|2&lt;/script&gt; &amp; *[x](y)*" in text


def test_the_browser_runs_the_script_of_the_page_alone():
    text = page.html("title", [])
    script = re.search("<script>(.*)</script>", text, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_text_is_text_in_markdown():
    cell = "&lt;script&gt;1\\|2&lt;/script&gt; &amp; \\*\\[x\\](y)\\*"
    table = page.markdown("title", [page.Section("section", [BLOCKS["table"]])])
    assert table == f"# title\n\n## section\n\n| {cell} |\n| --- |\n| {cell} |\n"


@pytest.mark.parametrize(
    ("text", "said"), [("wrn_40_2", "wrn_40_2"), ("_a_", "\\_a\\_"), ("a __b__", "a \\_\\_b\\_\\_")]
)
def test_an_underscore_is_escaped_but_inside_a_word(text, said):
    assert page.markdown(text, []) == f"# {said}\n"


def test_a_line_break_does_not_break_a_table():
    assert "| a b |" in page.markdown("title", [page.Section("section", [page.Table(("a\nb",), [])])])
