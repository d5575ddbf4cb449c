"""Pictures of attribution maps, of trade-offs and of training, as matplotlib figures.

Each function builds its own `matplotlib.figure.Figure` and none touches pyplot, so they need no
display and leave no figure open. Save one with ``figure.savefig(path)``, or put several on one
page with `explainguide.report.write_report`; their label (``figure.get_label()``) is a text
alternative for readers who cannot see them.

Colours are chosen for colour-blind readers. Signed maps use orange against purple (``PuOr_r``): red
against blue would turn the red into a mere shadow for a reader who does not see red and green
apart. Only contributions of B-cos networks have the blue, white and red of their papers, with white
for zero. Positive maps use ``plasma``, whose lightness rises evenly, so that it also reads in print.
Runs differ in marker *and* in colour.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from explainguide.named import on_demand

if TYPE_CHECKING:
    from explainguide.visualization.aggregate import aggregate_plot
    from explainguide.visualization.bcos import bcos_panel
    from explainguide.visualization.overlays import overlay
    from explainguide.visualization.panels import before_after, panel
    from explainguide.visualization.plots import curves, pareto_plot

__all__ = [
    "aggregate_plot",
    "bcos_panel",
    "before_after",
    "curves",
    "overlay",
    "panel",
    "pareto_plot",
]

# A table of text needs no matplotlib.
__getattr__, __dir__ = on_demand(
    __name__,
    {
        "aggregate_plot": "aggregate",
        "bcos_panel": "bcos",
        "before_after": "panels",
        "curves": "plots",
        "overlay": "overlays",
        "panel": "panels",
        "pareto_plot": "plots",
    },
)
