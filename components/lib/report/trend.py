"""What a loss curve says: a smoothed trend with confidence, and a verdict in words.

The loss of a diffusion step depends more on the sigma that was drawn than on the model, so single
values mean little. The trend is a kernel-weighted mean over neighbouring steps; its standard error
comes from the residuals, widened for the correlation between neighbours. The trade-off of the
wide kernel is that the trend reacts late at a sharp bend, which is why spikes and divergence are
judged on the raw values.

The verdict compares block means (first tenth against last tenth) and the slope of the last half.
Each is called a change only when it is beyond `Z` standard errors.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from components.lib.contract import Frozen
from components.lib.report.curves import Series

Array = NDArray[np.float64]
Word = Literal["falling", "flat", "diverging", "spiking", "too short to tell"]

MIN_POINTS = 20
Z = 2.6  # two sides of this are 1 %: a flat curve is rarely called anything else
SPIKE_SIGMAS = 8.0


class Smoothed(NamedTuple):
    """Trend and its 95 % interval, one value per input value."""

    mean: Array
    low: Array
    high: Array


class Verdict(Frozen):
    """What the curve does, the sentence for people and the numbers behind it."""

    word: Word
    sentence: str
    numbers: dict[str, float]


def smooth(values: ArrayLike, bandwidth: float | None = None) -> Smoothed:
    """Gaussian-kernel trend of equally spaced values [N] with a 95 % interval.

    ``bandwidth`` is the kernel's standard deviation in points (default N / 25, at least 1.5).
    """
    y = np.asarray(values, dtype=np.float64)
    count = len(y)
    if count < 3:
        return Smoothed(y, y, y)
    sigma = bandwidth or max(1.5, count / 25)
    reach = min(count - 1, math.ceil(4 * sigma))
    kernel = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    # Reflecting the ends would flatten the first bend of a loss curve; weights that shrink
    # towards the ends do not.
    weight = np.convolve(np.ones(count), kernel, mode="full")[reach : reach + count]
    mean = np.convolve(y, kernel, mode="full")[reach : reach + count] / weight
    residual = y - mean
    variance = np.convolve(residual**2, kernel, mode="full")[reach : reach + count] / weight
    squares = np.convolve(np.ones(count), kernel**2, mode="full")[reach : reach + count]
    error = np.sqrt(variance * squares * _inflation(residual)) / weight
    return Smoothed(mean, mean - 1.96 * error, mean + 1.96 * error)


def _inflation(residual: Array) -> float:
    """Factor on the variance of a mean of values whose neighbours are correlated (AR(1))."""
    spread = float(np.dot(residual, residual))
    if spread <= 0:
        return 1.0
    lag = float(np.dot(residual[1:], residual[:-1])) / spread
    lag = min(max(lag, 0.0), 0.9)
    return (1 + lag) / (1 - lag)


class _Change(NamedTuple):
    value: float
    error: float

    @property
    def significant(self) -> bool:
        return abs(self.value) > Z * self.error


def read_trend(series: Series) -> Verdict:
    """Verdict on a loss curve. Accepts NaN and infinite values, which count as divergence."""
    raw = np.asarray(series.values, dtype=np.float64)
    bad = int(np.sum(~np.isfinite(raw)))
    finite = raw[np.isfinite(raw)]
    numbers: dict[str, float] = {"steps": float(len(raw)), "non_finite": float(bad)}
    if bad:
        first = series.steps[int(np.argmax(~np.isfinite(raw)))]
        return Verdict(
            word="diverging",
            sentence=f"Diverging: {bad} of {len(raw)} losses are not finite, from step {first} on.",
            numbers=numbers,
        )
    if len(finite) < MIN_POINTS:
        return Verdict(
            word="too short to tell",
            sentence=f"Too short to tell: {len(finite)} steps, at least {MIN_POINTS} are needed.",
            numbers=numbers,
        )
    start, end, change, slope = _measure(finite)
    spikes = _spikes(finite)
    numbers |= {
        "first_tenth": start,
        "last_tenth": end,
        "ratio": end / start if start else math.nan,
        "change": change.value,
        "change_error": change.error,
        "tail_slope_per_100": 100 * slope.value,
        "tail_slope_error_per_100": 100 * slope.error,
        "spikes": float(len(spikes)),
        "lowest": float(finite.min()),
    }
    return _word(series.finite(), numbers, change, slope, spikes)


def _measure(y: Array) -> tuple[float, float, _Change, _Change]:
    """First and last tenth's mean, their difference, and the slope of the last half."""
    tenth = max(2, len(y) // 10)
    residual = y - smooth(y).mean
    # The kernel follows part of the noise, which makes residuals too small; the differences of
    # neighbours do not have that fault, but miss correlation, so the larger estimate is used.
    noise = max(float(np.std(residual)), float(np.std(np.diff(y))) / math.sqrt(2))
    noise *= math.sqrt(_inflation(residual))
    start, end = float(y[:tenth].mean()), float(y[-tenth:].mean())
    change = _Change(end - start, noise * math.sqrt(2 / tenth))
    tail = y[len(y) // 2 :]
    x = np.arange(len(tail)) - (len(tail) - 1) / 2
    spread = float(np.dot(x, x))
    fitted = float(np.dot(x, tail)) / spread
    left = tail - tail.mean() - fitted * x
    error = math.sqrt(float(np.dot(left, left)) / max(len(tail) - 2, 1) / spread)
    return start, end, change, _Change(fitted, error * math.sqrt(_inflation(left)))


def _spikes(y: Array) -> list[int]:
    """Positions whose value stands far above its neighbourhood's median."""
    half = max(2, min(12, len(y) // 10))
    padded = np.pad(y, half, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    excess = y - np.median(windows, axis=1)
    scale = 1.4826 * float(np.median(np.abs(excess))) or float(np.std(excess)) / 4
    if scale <= 0:
        return []
    typical = float(np.median(np.abs(y)))
    far = (excess > SPIKE_SIGMAS * scale) & (excess > 0.5 * typical)
    return [int(i) for i in np.flatnonzero(far)]


def _word(
    series: Series,
    numbers: dict[str, float],
    change: _Change,
    slope: _Change,
    spikes: list[int],
) -> Verdict:
    start, end = numbers["first_tenth"], numbers["last_tenth"]
    span = f"from {start:.4g} (first tenth of the steps) to {end:.4g} (last tenth)"
    percent = f"{100 * (end / start - 1):+.1f} %".replace("-", "−") if start else "from zero"
    rising = slope.significant and slope.value > 0
    tail_rise = slope.value * (len(series.steps) - len(series.steps) // 2)
    best = float(np.min(smooth(series.values).mean))
    climbed = rising and tail_rise > 0.1 * abs(best)
    if (change.significant and change.value > 0.05 * abs(start)) or climbed:
        sentence = f"Diverging: the loss went {span}, {percent}"
        sentence += ", and the last half rises." if rising else "."
        return Verdict(word="diverging", sentence=sentence, numbers=numbers)
    if len(spikes) >= max(2, len(series.steps) // 200):
        steps = ", ".join(str(series.steps[i]) for i in spikes[:5])
        more = " and others" if len(spikes) > 5 else ""
        sentence = (
            f"Spiking: {len(spikes)} sudden jumps, at steps {steps}{more}; {span}, {percent}."
        )
        return Verdict(word="spiking", sentence=sentence, numbers=numbers)
    if change.significant and change.value < 0:
        tail = "still falling" if slope.significant and slope.value < 0 else "level"
        sentence = f"Falling: the loss went {span}, {percent}; the last half is {tail}."
        return Verdict(word="falling", sentence=sentence, numbers=numbers)
    bound = Z * change.error
    sentence = (
        f"Flat: the loss went {span}; a change below {bound:.2g} cannot be told from the noise."
    )
    return Verdict(word="flat", sentence=sentence, numbers=numbers)
