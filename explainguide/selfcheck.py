"""The report of `ExplanationGuidance.check`, from :mod:`explainguide.guidance.selfcheck`."""

from explainguide.guidance.selfcheck import LayerReport, Report

__all__ = ["LayerReport", "Report"]
