"""Measures on arrays [n, L].

Multi-label measures, thresholds and protocols of scores and labels; measures of label
distributions; tests of runs and of methods over data sets; an order of labels by resemblance.
"""

from jaxmlcl.evaluation._clusters import clustered_order
from jaxmlcl.evaluation._counts import THRESHOLD_METRICS, Conventions
from jaxmlcl.evaluation._distributions import (
    DISTRIBUTION_MEASURES,
    LARGER_IS_BETTER,
    distribution_measures,
)
from jaxmlcl.evaluation._metrics import METRICS, multilabel_metrics, per_label_table
from jaxmlcl.evaluation._paired import PairedTest, paired_test
from jaxmlcl.evaluation._probes import NEIGHBOURS, PENALTIES, ProbeScores, knn_scores, ridge_scores
from jaxmlcl.evaluation._protocols import evaluate_scores, protocol_metrics
from jaxmlcl.evaluation._ranking import THRESHOLD_FREE_METRICS, average_precision
from jaxmlcl.evaluation._ranks import (
    FriedmanTest,
    WilcoxonTest,
    average_ranks,
    friedman_test,
    nemenyi_critical_difference,
    wilcoxon_signed_rank,
)
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
    "DISTRIBUTION_MEASURES",
    "LARGER_IS_BETTER",
    "METRICS",
    "NEIGHBOURS",
    "PENALTIES",
    "THRESHOLD_FREE_METRICS",
    "THRESHOLD_GRID",
    "THRESHOLD_METRICS",
    "Comparison",
    "Conventions",
    "FriedmanTest",
    "Interval",
    "MetricState",
    "PairedTest",
    "ProbeScores",
    "WilcoxonTest",
    "average_precision",
    "average_ranks",
    "bootstrap_interval",
    "bootstrap_replicates",
    "choose_thresholds",
    "choose_top_k",
    "clustered_order",
    "distribution_measures",
    "evaluate_scores",
    "friedman_test",
    "knn_scores",
    "multilabel_metrics",
    "nemenyi_critical_difference",
    "paired_comparison",
    "paired_test",
    "per_label_table",
    "protocol_metrics",
    "replicate_interval",
    "replicate_p",
    "ridge_scores",
    "wilcoxon_signed_rank",
]
