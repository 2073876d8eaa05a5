"""Makes docs/claims.md from the texts of the claims."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from tf_lrtraj.claims import stationarity
from tf_lrtraj.claims.ledger import CLAIMS
from tf_lrtraj.claims.verdicts import Claim, bounds_shown


def claims_page(claims: Sequence[Claim] = CLAIMS) -> str:
    """Returns docs/claims.md: every claim with its measurement and thresholds."""
    lines = [_HEAD, _stationarity()]
    for claim in claims:
        reads = [f"`{name}`" for name in claim.records]
        lines += [
            f"## {claim.id}. {claim.title}",
            "",
            _filled(claim.sentence),
            "",
            f"- Source: {claim.source}",
            _filled(f"- Measured: {claim.experiment}"),
            _filled(f"- Records: {', '.join(reads)}"),
            "- Wanted:",
            *(
                _filled(f"  - {wanted.what}: {bounds_shown(wanted.low, wanted.high)}", "    ")
                for wanted in claim.wanted
            ),
            _filled(f"- Why: {claim.argument}"),
            "",
        ]
    return "\n".join(lines).rstrip() + "\n"


def _filled(text: str, indent: str = "  ") -> str:
    """A paragraph or an entry of a list, in lines of at most 100 characters."""
    inner = indent if text.lstrip().startswith("- ") else ""
    return textwrap.fill(
        text, 100, subsequent_indent=inner, break_long_words=False, break_on_hyphens=False
    )


def _stationarity() -> str:
    loss, norm = (f"{100 * x:g} %" for x in (stationarity.LOSS_LIMIT, stationarity.NORM_LIMIT))
    return _STATIONARITY.format(loss=loss, norm=norm, growth=stationarity.GROWTH_LIMIT)


_HEAD = """# Claims and what decides them

This page is made from the texts in `tf_lrtraj.claims`; a test keeps it in step with them:

    python -c "import tf_lrtraj.claims as c; print(c.claims_page(), end='')" > docs/claims.md

Thresholds were set and argued before the runs that they are to judge, those of
`reproduce_cifar10_resnet20` and `reproduce_cifar100_resnet14`. The older scale `cifar10_cpu`,
whose records led to the repair of these claims, is judged by them too. A part of a claim holds
only if its whole interval (95 %, Student's over seeds wherever the sentence is about networks; 90
% for a claim of equality, which is two one-sided tests at 5 %) lies on the right side of its
threshold. It fails only if the whole interval lies on the wrong side, at the level that Holm's
method sets for all parts of the claim together. A claim is *reproduced* if all parts hold, *not
reproduced* if one fails, *inconclusive* otherwise. It is inconclusive too if a condition of the
measurement is not met: claims about a stationary state are not judged on runs that still drift,
though what was measured is shown. *Not measured*: the records lack what the claim needs, and the
reason says what. *Not run at this scale*: the configuration is not there for the claim. A record
that is damaged, of another shape or not finite gives *inconclusive* with the file's name. A smoke
test gives numbers and no verdict.
"""

_STATIONARITY = """## When a run counts as stationary

Each test is the change of something from the first to the last step of the window, along a
straight line through the means of ten blocks, whose scatter about it gives the error whatever the
autocorrelation within them. It is passed if the change is small (within the limit) and either its
whole 95 % interval lies within the limit or it is not resolved from 0. A noisy series whose
estimate exceeds the limit does not pass.

- Mini-batch loss of the base run: {loss} of itself; for A2 and A3 a quarter of the difference
  between the run at rate λ and that at λ/n, if that is less. Averages weigh the window from its
  middle, so they feel half of a drift, an eighth of that difference.
- Full training loss of single iterates of the base run: {loss}.
- Squared norm of the weights: {norm}, as the effective rate of weights before batch norm goes as
  one over it, and rates that are compared differ by a factor of 2.
- A2, A3: the loss of the runs at λ/n over their late iterates, {loss}, and the run at λ/n must
  lie below that at twice its rate.
- B4: the loss of the run without momentum, {loss}, and its change in one update against a quarter
  of the best held-out gain of one step, which moves the crossing by a sixteenth.
- B8: the squared norm at every rate, {norm}, and the exponents from the first halves
  of the runs against those from the second.
- B9: growth of the squared displacement with lag to a power below {growth}.
- B13: the mini-batch loss at every rate, {loss}.

Claims of basins and of convexity (B6, B12) need a control instead: the same measurement between
runs of two seeds, which share no basin, must show a barrier.
"""
