"""`ExplanationGuidance`, and what it is made of."""

from explainguide.guidance.guide import ExplanationGuidance

__all__ = ["ExplanationGuidance"]
