"""Data sets of openml.org, through scikit-learn's fetcher, for people who have a network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn import datasets

from jaxmlcl.data._checks import columns_of, fill_with_means, wants_mask, wants_means
from jaxmlcl.data.source import ArraySource, integer_option, shorten
from jaxmlcl.errors import DataError

# Spellings of a label's two values, absent first.
_BINARY = (("0", "1"), ("false", "true"), ("no", "yes"))


def open_openml(name: str, options: Mapping[str, str], places: Sequence[Path]) -> ArraySource:
    """Open a data set of openml.org; see `open_source`.

    scikit-learn fetches it once and keeps it in its own folder (SCIKIT_LEARN_DATA, or
    scikit_learn_data in the home folder).

    Args:
      name: its name on openml.org, or its number.
      options: `labels`, the label columns as `a,b` or `prefix*`, numbers 0 and 1 or nominal with
        two values such as FALSE and TRUE; `version`, that of the name (the oldest active one if
        left out); `missing`, "mean" to put the mean of the known values of its column in the place
        of a missing feature; `unknown`, "mask" to take a missing label as unknown.
      places: not used.

    Returns:
      The rows in the order of the data set; features are float32, nominal ones as one column per
      value.

    Raises:
      DataError: there is no network, no such data set, or its columns cannot be used.

    Example:
      >>> open_openml("yeast", {}, [])
      Traceback (most recent call last):
      ...
      jaxmlcl.errors.DataError: openml:yeast: which columns are labels? write '?labels=a,b' or ...
    """
    del places
    where = f"openml:{name}"
    if "labels" not in options:
        raise DataError(f"{where}: which columns are labels? write '?labels=a,b' or '?labels=pre*'")
    fills, masks = wants_means(options, where), wants_mask(options, where)
    fetched = _fetch(name, options, where)
    columns = list(fetched.feature_names)
    categories = {key: list(map(str, values)) for key, values in (fetched.categories or {}).items()}
    table = fetched.data.toarray() if hasattr(fetched.data, "toarray") else fetched.data
    labels = columns_of(options["labels"], columns, where)
    parts: list[np.ndarray] = []
    names: list[str] = []
    for column in sorted(set(range(len(columns))) - set(labels)):
        values, title = table[:, column : column + 1], columns[column]
        kinds = categories.get(title)
        if kinds is None or kinds == ["0", "1"]:
            parts.append(values)
            names.append(title)
        else:
            parts.append(np.where(np.isnan(values), values, values == np.arange(len(kinds))))
            names += [f"{title}={kind}" for kind in kinds]
    if not parts:
        raise DataError(f"{where}: every column is a label; no feature is left")
    with np.errstate(over="ignore"):  # too large becomes infinite, which the source refuses
        inputs = np.hstack(parts).astype(np.float32)
    values = [_label(table[:, i], categories, columns[i], where) for i in labels]
    targets = np.stack(values, axis=1)
    return ArraySource(
        fill_with_means(inputs, names, where) if fills else inputs,
        targets,
        name=name,
        label_names=[columns[column] for column in labels],
        feature_names=names,
        where=where,
        label_mask=~np.isnan(targets) if masks else None,
    )


def _fetch(name: str, options: Mapping[str, str], where: str) -> Any:
    wanted: dict[str, Any] = {"name": name}
    if name.isdigit():
        if "version" in options:
            raise DataError(f"{where}: a number names one version; leave the option version out")
        wanted = {"data_id": int(name)}
    elif "version" in options:
        wanted["version"] = integer_option(
            options, "version", default=1, low=1, high=10**6, where=where
        )
    wanted |= {"target_column": None, "as_frame": False, "parser": "liac-arff", "n_retries": 1}
    try:
        with warnings.catch_warnings():
            # What goes wrong for good is told below.
            warnings.filterwarnings("ignore", message="A network error occurred")
            return datasets.fetch_openml(**wanted)
    except (ValueError, TypeError) as error:
        # No such data set or version, columns of text, or a damaged copy.
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{where}: openml.org's data cannot be used: {reason}") from None
    except OSError as error:
        # Everything that a network can do, URLError among it.
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
        raise DataError(
            f"{where}: openml.org cannot be reached ({reason}), and scikit-learn has no copy; "
            "fetch it once with a network, or give a file"
        ) from None


def _label(
    values: np.ndarray, categories: Mapping[str, Sequence[str]], name: str, where: str
) -> np.ndarray:
    kinds = categories.get(name)
    if kinds is None:
        return values
    spelt = [kind.lower() for kind in kinds]
    for absent, present in _BINARY:
        if set(spelt) <= {absent, present}:
            # The fetcher numbers the values in the order in which they are declared.
            meaning = np.array([kind == present for kind in spelt], float)
            known = ~np.isnan(values)
            return np.where(known, meaning[np.where(known, values, 0).astype(int)], values)
    raise DataError(
        f"{where}: label {shorten(name)} has the values {shorten(','.join(kinds))}; expected 0 "
        "and 1, or FALSE and TRUE"
    )
