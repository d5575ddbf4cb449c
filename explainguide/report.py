"""The pages of :mod:`explainguide.visualization`, under their public names."""

from explainguide.visualization.evaluation_data import (
    Bars,
    Difference,
    EvaluationPage,
    Example,
    Gallery,
    LayerTable,
    MeanMap,
    MeanMaps,
    MetricNote,
    Pareto,
    Result,
    Score,
    ShownMap,
    result_rows,
)
from explainguide.visualization.evaluation_page import check_page_path, write_evaluation
from explainguide.visualization.report import write_report

__all__ = [
    "Bars",
    "Difference",
    "EvaluationPage",
    "Example",
    "Gallery",
    "LayerTable",
    "MeanMap",
    "MeanMaps",
    "MetricNote",
    "Pareto",
    "Result",
    "Score",
    "ShownMap",
    "check_page_path",
    "result_rows",
    "write_evaluation",
    "write_report",
]
