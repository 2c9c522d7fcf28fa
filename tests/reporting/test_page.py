"""One page in two forms."""

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
    assert "<script" not in text
    assert "&lt;script&gt;1|2&lt;/script&gt; &amp; *[x](y)*" in text


def test_text_is_text_in_markdown():
    cell = "&lt;script&gt;1\\|2&lt;/script&gt; &amp; \\*\\[x\\](y)\\*"
    table = page.markdown("title", [page.Section("section", [BLOCKS["table"]])])
    assert table == f"# title\n\n## section\n\n| {cell} |\n| --- |\n| {cell} |\n"


def test_a_line_break_does_not_break_a_table():
    assert "| a b |" in page.markdown("title", [page.Section("section", [page.Table(("a\nb",), [])])])
