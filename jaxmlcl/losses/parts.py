"""What `multi_positive_infonce` is made of, for programs that walk over keys in their own way.

`prepare` checks and orders the arguments; `walk` sums over the keys that are at hand; `merge_walks`
adds what other keys give; `Problem.complete` and `Problem.rows` turn the sums into losses. The
collective strategies of `jaxmlcl.sharding` are built from these. `score_contrastive` is
`label_contrastive` for a program that has the scores of the labels already.
"""

from ._chunks import unchunked
from ._common import divide
from ._contrastive import sum_classes
from ._mixture import score_contrastive
from ._pairs import FACTORISED, Anchors, Keys
from ._problem import Problem, Statistics, own_keys, prepare
from ._walk import Rule, Seen, Walk, merge_walks, walk

__all__ = [
    "FACTORISED",
    "Anchors",
    "Keys",
    "Problem",
    "Rule",
    "Seen",
    "Statistics",
    "Walk",
    "divide",
    "merge_walks",
    "own_keys",
    "prepare",
    "score_contrastive",
    "sum_classes",
    "unchunked",
    "walk",
]
