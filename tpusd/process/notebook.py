"""A progress bar in the output of a notebook's cell (Jupyter, Colab, Kaggle, VS Code). Needs no widgets."""

import html
import sys
from typing import Any


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel, whose output can be replaced."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return getattr(shell, "kernel", None) is not None


class NotebookBar:
    """One output of the cell, which each `show` replaces."""

    def __init__(self) -> None:
        self._handle: Any = None  # IPython's DisplayHandle, which has no types

    def show(self, position: float, total: int, text: str) -> None:
        """position, total: images. text: beside the bar."""
        from IPython.display import HTML, display

        bar = f'<progress value="{position:.3f}" max="{max(total, 1)}" style="width:16em"></progress>'
        output = HTML(f"{bar} <code>{html.escape(text)}</code>")
        if self._handle is None:
            self._handle = display(output, display_id=True)
        else:
            self._handle.update(output)
