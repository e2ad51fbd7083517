"""The gate: explicit rules that decide whether a model may replace the one in production.

The deciding rule is a paired t test over source videos (see `components.lib.report.stats`): the
lower end of the 95 % interval of the improvement must lie above the margin. A model that is no
better passes in 2.5 % of cases, whatever the number of videos. Pairing removes what both models
share (hard videos are hard for both), so the test is much finer than the interval of a single
model's mean suggests: with a correlation rho over videos its standard error is sqrt(2 (1 - rho))
times that of one model. At rho = 0.9 an improvement of two of *those* standard errors is 4.5 of
the test's and passes in more than 95 % of cases. An improvement of two standard errors of the
*paired* difference itself passes only about half the time; no test that lets fewer than 5 % of
equal models pass can reach 64 % there, so whoever needs that must hold out more video.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field

from components.lib.contract import Frozen
from components.lib.report.scores import HELD_OUT, OLD, Evaluation, ModelRole, by_drive
from components.lib.report.stats import Comparison, compare

LIMITS = {"relative": 0.05, "absolute": 0.5}


class GateRules(Frozen):
    """What a model must fulfil. Margins are in the comparison's own scale."""

    confidence: float = Field(
        default=0.975,
        gt=0.5,
        lt=1,
        description="How sure the improvement must be, one-sided: 0.975 lets 2.5 % of equal "
        "models pass.",
    )
    min_improvement: float = Field(
        default=0.0,
        ge=0,
        description="Smallest improvement that counts: ln(old loss / new loss) for diffusion, dB "
        "for tokenizers.",
    )
    max_regression: float = Field(
        default=-1.0,
        description="How much worse one drive, or the older held-out video, may get, in the same "
        "unit. Negative: 0.05 (about 5 % of the loss) or 0.5 dB.",
    )
    first_version: Literal["better than base", "accept"] = Field(
        default="better than base",
        description="While nothing is in production: the model must be better than its base on "
        "average, or is accepted as it is.",
    )


class Rule(Frozen):
    """One rule and how it went."""

    name: str
    passed: bool
    sentence: str


class Verdict(Frozen):
    """All rules. ``passed`` when every one of them passed."""

    passed: bool
    rules: tuple[Rule, ...]
    improvement: float
    p_value: float


def judge(evaluation: Evaluation, production: str, version_name: str, rules: GateRules) -> Verdict:
    """Apply the rules. ``production`` is the digest of the weights in production, "" for none."""
    if not production:
        return _verdict(*_first(evaluation, rules))
    measured = evaluation.models.get("production")
    if measured is None or measured.digest != production:
        what = f"against {measured.name}" if measured else "without a look at production"
        rule = Rule(
            name="compared with production",
            passed=False,
            sentence=f"{version_name} is in production, but the evaluation was made {what}. "
            "Evaluate again with model_name set.",
        )
        return Verdict(passed=False, rules=(rule,), improvement=math.nan, p_value=math.nan)
    comparison = _compare(evaluation, "production", HELD_OUT)
    return _verdict(
        [
            _better(comparison, version_name, rules),
            _drives(evaluation, "production", rules),
            *_old(evaluation, "production", rules),
        ],
        comparison,
    )


def _verdict(rules: list[Rule], comparison: Comparison | None) -> Verdict:
    return Verdict(
        passed=all(rule.passed for rule in rules),
        rules=tuple(rules),
        improvement=comparison.improvement if comparison else math.nan,
        p_value=comparison.p_value if comparison else math.nan,
    )


def _compare(evaluation: Evaluation, role: ModelRole, name: str) -> Comparison | None:
    return compare(
        evaluation.clips(role, name),
        evaluation.clips("candidate", name),
        evaluation.metric,
        evaluation.better,
    )


def _first(evaluation: Evaluation, rules: GateRules) -> tuple[list[Rule], Comparison | None]:
    comparison = _compare(evaluation, "base", HELD_OUT)
    if rules.first_version == "accept":
        sentence = "Nothing is in production; first versions are accepted as they are."
        return [Rule(name="first version", passed=True, sentence=sentence)], comparison
    if comparison is None:
        sentence = "Nothing is in production, and base and candidate share no measured clip."
        return [Rule(name="first version", passed=False, sentence=sentence)], comparison
    passed = comparison.improvement > 0
    word = "better" if passed else "not better"
    sentence = f"Nothing is in production; the model is {word} than its base: {comparison.text}."
    return [Rule(name="first version", passed=passed, sentence=sentence)], comparison


def _better(comparison: Comparison | None, version_name: str, rules: GateRules) -> Rule:
    name = "better beyond noise"
    if comparison is None:
        return Rule(name=name, passed=False, sentence="No clip was measured on both models.")
    if not math.isfinite(comparison.p_value):
        return Rule(
            name=name,
            passed=False,
            sentence=f"{comparison.units} {comparison.unit} cannot tell an improvement from noise. "
            "Hold out more video, or promote by force with a reason.",
        )
    low = lower_bound(comparison, rules.confidence)
    passed = low > rules.min_improvement
    verb = "is" if passed else "is not"
    return Rule(
        name=name,
        passed=passed,
        sentence=f"Against {version_name} the improvement is {comparison.text}; it {verb} beyond "
        f"noise (lower bound {low:.4g}, needed more than {rules.min_improvement:g}).",
    )


def lower_bound(comparison: Comparison, confidence: float) -> float:
    """One-sided lower confidence bound of the improvement."""
    from components.lib.report.stats import t_quantile

    if comparison.error == 0:
        return comparison.improvement
    return comparison.improvement - t_quantile(confidence, comparison.units - 1) * comparison.error


def _drives(evaluation: Evaluation, role: ModelRole, rules: GateRules) -> Rule:
    before = by_drive(evaluation.clips(role), evaluation.metric)
    after = by_drive(evaluation.clips("candidate"), evaluation.metric)
    changes = {
        drive: _worsening(before[drive], after[drive], evaluation)
        for drive in before.keys() & after.keys()
    }
    limit = _limit(evaluation, rules)
    over = sorted(drive for drive, change in changes.items() if change > limit)
    if not over:
        worst = max(changes.values(), default=0.0)
        sentence = f"No drive got worse by more than {limit:g}; the worst changed by {worst:+.3g}."
    else:
        named = ", ".join(f"{drive} ({changes[drive]:+.3g})" for drive in over[:5])
        more = f" and {len(over) - 5} more" if len(over) > 5 else ""
        sentence = f"Worse by more than {limit:g} on {named}{more}."
    return Rule(name="no regression per drive", passed=not over, sentence=sentence)


def _old(evaluation: Evaluation, role: ModelRole, rules: GateRules) -> list[Rule]:
    comparison = _compare(evaluation, role, OLD)
    if comparison is None:
        return []
    limit = _limit(evaluation, rules)
    passed = comparison.improvement > -limit
    sentence = f"On older video the improvement is {comparison.text}; the limit is {-limit:g}."
    return [Rule(name="does not forget", passed=passed, sentence=sentence)]


def _limit(evaluation: Evaluation, rules: GateRules) -> float:
    if rules.max_regression >= 0:
        return rules.max_regression
    return LIMITS["relative" if evaluation.better == "lower" else "absolute"]


def _worsening(before: float, after: float, evaluation: Evaluation) -> float:
    """Positive is worse: ln(after / before) of a loss, or the decrease of a score."""
    if evaluation.better == "higher":
        return before - after
    return math.log(after / before) if before > 0 and after > 0 else after - before
