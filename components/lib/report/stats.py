"""Is one model better than another on the same videos? Means, intervals and a paired test.

Held-out loss differs far more between videos than between two models on one video, so models are
compared video by video: the test is a one-sample Student t test on the differences. Its standard
error is that of a single model's mean times sqrt(2 (1 - rho)), where rho is the correlation of the
two models over videos. Losses are compared by their logarithm (differences are then relative
changes, and one hard video does not outweigh all others); PSNR is a logarithm already.

With fewer than `MIN_VIDEOS` videos the clips are counted instead, which is stated in the result:
such an interval covers other clips of these videos, not other videos.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from components.lib.contract import Frozen
from components.lib.report.scores import Better, ClipScore, by_clip, by_video

MIN_VIDEOS = 3


class Interval(Frozen):
    """A mean with its 95 % interval; NaN bounds where fewer than two units were measured."""

    mean: float
    low: float
    high: float
    units: int


class Comparison(Frozen):
    """How much better ``new`` is than ``old``. Positive ``improvement`` is better.

    ``scale`` "relative": improvement is ln(old / new) of a loss, about its relative decrease;
    "absolute": the difference of the quantity (dB for PSNR). ``p_value`` is one-sided: the chance
    of so large an improvement when there is none. NaN where it cannot be computed.
    """

    metric: str
    scale: Literal["relative", "absolute"]
    unit: Literal["videos", "clips"]
    units: int
    old: float
    new: float
    improvement: float
    error: float
    low: float
    high: float
    p_value: float

    @property
    def text(self) -> str:
        """The improvement in words, with its interval."""

        def shown(value: float) -> str:
            if self.scale == "relative":
                return f"{100 * (1 - math.exp(-value)):+.2f} %"
            return f"{value:+.3g}" + (" dB" if self.metric == "psnr" else "")

        interval = ""
        if math.isfinite(self.low):
            interval = f" (95 % interval {shown(self.low)} to {shown(self.high)})"
        unit = self.unit if self.units != 1 else self.unit.removesuffix("s")
        text = f"{shown(self.improvement)}{interval} over {self.units} {unit}"
        return text.replace("-", "−")


def interval(clips: Sequence[ClipScore], metric: str) -> Interval:
    """Mean over source videos with its 95 % interval."""
    values = list(by_video(clips, metric).values())
    if not values:
        return Interval(mean=math.nan, low=math.nan, high=math.nan, units=0)
    mean = float(np.mean(values))
    reach = _reach(values)
    return Interval(mean=mean, low=mean - reach, high=mean + reach, units=len(values))


def compare(
    old: Sequence[ClipScore], new: Sequence[ClipScore], metric: str, better: Better
) -> Comparison | None:
    """Paired comparison on what both models were measured on; None when that is nothing."""
    unit: Literal["videos", "clips"] = "videos"
    before, after = by_video(old, metric), by_video(new, metric)
    if len(before.keys() & after.keys()) < MIN_VIDEOS:
        unit, before, after = "clips", by_clip(old, metric), by_clip(new, metric)
    return compare_values(before, after, metric, better, unit)


def compare_values(
    before: Mapping[str, float],
    after: Mapping[str, float],
    metric: str,
    better: Better,
    unit: Literal["videos", "clips"] = "videos",
) -> Comparison | None:
    """The same on values by unit name. Losses must be positive."""
    shared = sorted(before.keys() & after.keys())
    if not shared:
        return None
    old = np.array([before[name] for name in shared])
    new = np.array([after[name] for name in shared])
    relative = better == "lower" and bool((old > 0).all() and (new > 0).all())
    first, second = (np.log(old), np.log(new)) if relative else (old, new)
    gains = first - second if better == "lower" else second - first
    values = [float(value) for value in gains]
    mean, error = float(np.mean(values)), _error(values)
    reach = _reach(values)
    return Comparison(
        metric=metric,
        scale="relative" if relative else "absolute",
        unit=unit,
        units=len(values),
        old=float(old.mean()),
        new=float(new.mean()),
        improvement=mean,
        error=error,
        low=mean - reach,
        high=mean + reach,
        p_value=_p_value(mean, error, len(values) - 1),
    )


def _error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    return float(np.std(values, ddof=1)) / math.sqrt(len(values))


def _reach(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    return t_quantile(0.975, len(values) - 1) * _error(values)


def _p_value(mean: float, error: float, freedom: int) -> float:
    if freedom < 1 or not math.isfinite(error):
        return math.nan
    if error == 0:
        # Every unit changed by the same amount: no doubt left, unless that amount is nothing.
        return 0.0 if mean > 0 else 1.0
    from scipy.special import stdtr

    return float(stdtr(freedom, -mean / error))


def t_quantile(probability: float, freedom: float) -> float:
    """The t with P(T <= t) = probability of Student's distribution."""
    from scipy.special import stdtrit

    return float(stdtrit(freedom, probability))
