"""The page of :mod:`explainguide.visualization.report`, under its public name."""

from explainguide.visualization.report import write_report

__all__ = ["write_report"]
