"""Features: whether representations collapse, from a matrix of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np

from sidestep_collector.analyse.arrays import histogram
from sidestep_collector.analyse.protocol import Analyser, Floats, Given, Span, Values
from sidestep_collector.latents import floats

SUFFIX: Final = "_features"
ROWS_MAX: Final = 256
#: Of fewer rows than this share of the dimensions nobody can tell how many of these they use.
ROWS_SHARE: Final = 1 / 3
_FOUND: Final = ("mean_std_per_dim", "min_std_per_dim", "effective_rank", "effective_rank_share", "mean_similarity")


def std_per_dimension(features: Floats) -> Floats:
    """Standard deviation over the rows, of the population; features of shape (N, d), result (d,)."""
    return features.std(axis=0)


def effective_rank(features: Floats) -> float:
    """exp(H(p)), p = s / Σs, with s the singular values of the matrix (Roy & Vetterli, EUSIPCO 2007; RankMe, Garrido et
    al. 2023): from 1 (all rows lie on one line) to min(N, d).

    The matrix is not centred, as in both papers: rows that are all alike but for noise are a collapse, and have a rank
    near 1; without their mean they would have that of the noise. s comes from the eigenvalues of the Gram matrix of
    the smaller side, in float64: exact to 1e-8 of the largest, which moves the rank by less than that.

    Args:
        features: shape (N, d), finite.

    Returns:
        NaN where all elements are 0.
    """
    gram = features @ features.T if len(features) <= features.shape[1] else features.T @ features
    s = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0.0))
    total = s.sum()
    if not total > 0:
        return np.nan
    p = s[s > 0] / total
    return float(np.exp(-(p @ np.log(p))))


def mean_similarity(features: Floats) -> float:
    """Mean cosine of all pairs of rows: (‖Σ n‖² - N) / (N (N - 1)), with n the N rows at length 1; rows of length 0 are
    left out.

    Args:
        features: shape (N, d), finite.

    Returns:
        NaN for fewer than two rows.
    """
    lengths = np.sqrt(np.einsum("ij,ij->i", features, features))
    count = int((lengths > 0).sum())
    if count < 2:
        return np.nan
    total = (1 / lengths[lengths > 0]) @ features[lengths > 0]
    return float((total @ total - count) / (count * (count - 1)))


def described(features: Floats) -> dict[str, float]:
    """What is given of a matrix; shape (N, d), finite, N >= 2."""
    rows, dimensions = features.shape
    spread, rank = std_per_dimension(features), effective_rank(features)
    found = (float(spread.mean()), float(spread.min()), rank, rank / dimensions, mean_similarity(features))
    named: dict[str, float] = dict(zip(_FOUND, found, strict=True))
    if rows < ROWS_SHARE * dimensions:
        del named["effective_rank_share"]
    return named


def distribution_of(name: str) -> str:
    """Name of the histogram; that of validation is another, for both may stand at one step."""
    split, last = name.split("/", 1)[0], name.rsplit("/", 1)[-1]
    return f"feature_distributions/val_{last}" if split == "val" and "/" in name else f"feature_distributions/{last}"


class Features(Analyser):
    """Of a tensor `<name>_features` (rows are examples): `<name>_mean_std_per_dim` and the others, and a histogram
    `feature_distributions/<last part of name>`, for validation `feature_distributions/val_<last part of name>`. Of more
    than 256 rows, 256 evenly spaced ones are taken."""

    name = "features"
    tensors = (f"*{SUFFIX}",)
    gives = tuple(f"*_{what}" for what in _FOUND)

    def add(self, span: Span) -> Iterator[Given]:
        """See `Analyser`."""
        for tensor in span.tensors:
            array = floats(tensor)
            if array is None or array.ndim < 2 or not array.size:
                continue
            features = array.reshape(-1, array.shape[-1])
            if len(features) > ROWS_MAX:
                features = features[np.linspace(0, len(features) - 1, ROWS_MAX).astype(np.int64)]
            features = features[np.isfinite(features).all(axis=1)]
            if len(features) < 2:
                continue
            name = tensor.name.removesuffix(SUFFIX)
            yield Values.at(tensor.at, {f"{name}_{what}": value for what, value in described(features).items()})
            found = histogram(tensor.at, distribution_of(name), features)
            if found is not None:
                yield found
