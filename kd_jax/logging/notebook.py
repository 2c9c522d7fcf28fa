"""Progress in a cell of a Jupyter notebook: one output, which is updated in place."""

import html
import sys
import time
from collections.abc import Sequence
from typing import Any


def is_running() -> bool:
    """Whether this process is the kernel of a notebook. Imports nothing."""
    ipython = sys.modules.get("IPython")
    shell: Any = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class Bar:
    """A bar with a line below it and the run's curves; a `kd_jax.logging.progress.Display`."""

    INTERVAL = 0.5  # seconds between updates

    def __init__(self, folder: str):
        """`folder`: of the run whose curves are drawn, or ""."""
        self._folder, self._html = folder, ""
        self._handle: Any = None  # of the output
        self._drawn = 0.0  # when

    def live(self, parts: Sequence[tuple[str, str]], done: float, note: str = "") -> None:
        texts = (
            f'<span style="white-space:nowrap;font-weight:{"bold" if name == "bold" else "normal"}">'
            f"{html.escape(text)}</span>"
            for text, name in parts
        )
        bar = f'<progress max="1" value="{done:.4f}" style="width:100%"></progress>'
        self._html = f"{bar}<br>{' &ensp; '.join(texts)}"
        if time.monotonic() - self._drawn >= self.INTERVAL:
            self._draw()

    def line(self, parts: Sequence[tuple[str, str]], done: float, now: float) -> None:
        self.live(parts, done)

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display

        from kd_jax.logging import curves

        drawn = curves.of_run(self._folder) if self._folder else ""
        shown = HTML(f"<div>{self._html}</div><div>{drawn}</div>")
        if self._handle is None:
            self._handle = display(shown, display_id=True)
        else:
            self._handle.update(shown)
        self._drawn = time.monotonic()
