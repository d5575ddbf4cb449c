"""`ExplanationGuidance`, its options, and what it is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING

from explainguide.named import on_demand

if TYPE_CHECKING:
    from explainguide.guidance.guide import ExplanationGuidance
    from explainguide.guidance.options import GuideOptions

__all__ = ["ExplanationGuidance", "GuideOptions"]

# The options are read by the command line, which starts without torch.
__getattr__, __dir__ = on_demand(
    __name__, {"ExplanationGuidance": "guide", "GuideOptions": "options"}
)
