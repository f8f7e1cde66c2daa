"""Multi-label measures, thresholds and protocols, on arrays of scores and labels [n, L]."""

from jaxmlcl.evaluation._counts import THRESHOLD_METRICS, Conventions
from jaxmlcl.evaluation._metrics import METRICS, multilabel_metrics, per_label_table
from jaxmlcl.evaluation._paired import PairedTest, paired_test
from jaxmlcl.evaluation._probes import NEIGHBOURS, PENALTIES, ProbeScores, knn_scores, ridge_scores
from jaxmlcl.evaluation._protocols import evaluate_scores, protocol_metrics
from jaxmlcl.evaluation._ranking import THRESHOLD_FREE_METRICS, average_precision
from jaxmlcl.evaluation._resampling import (
    Comparison,
    Interval,
    bootstrap_interval,
    bootstrap_replicates,
    paired_comparison,
    replicate_interval,
    replicate_p,
)
from jaxmlcl.evaluation._states import MetricState
from jaxmlcl.evaluation._thresholds import THRESHOLD_GRID, choose_thresholds, choose_top_k

__all__ = [
    "METRICS",
    "NEIGHBOURS",
    "PENALTIES",
    "THRESHOLD_FREE_METRICS",
    "THRESHOLD_GRID",
    "THRESHOLD_METRICS",
    "Comparison",
    "Conventions",
    "Interval",
    "MetricState",
    "PairedTest",
    "ProbeScores",
    "average_precision",
    "bootstrap_interval",
    "bootstrap_replicates",
    "choose_thresholds",
    "choose_top_k",
    "evaluate_scores",
    "knn_scores",
    "multilabel_metrics",
    "paired_comparison",
    "paired_test",
    "per_label_table",
    "protocol_metrics",
    "replicate_interval",
    "replicate_p",
    "ridge_scores",
]
