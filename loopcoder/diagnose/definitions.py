"""What each measure is called and means, for reports; the order is that of their tables."""

from __future__ import annotations

from dataclasses import dataclass

from loopcoder.page import Html


@dataclass(frozen=True)
class Definition:
    """A measure in words."""

    title: str
    meaning: Html
    """One sentence, with its formula."""


def _of(title: str, meaning: str) -> Definition:
    return Definition(title, Html(meaning))


_H, _BEFORE = "<i>h</i><sup>(<i>r</i>)</sup>", "<i>h</i><sup>(<i>r</i>&minus;1)</sup>"
_P = "<i>p</i><sup>(<i>r</i>)</sup>"

VARIANTS = {
    "raw": "residual stream",
    "normed": "after the final norm",
    "all": "all keys",
    "no_first": "without the document's first token",
    "output_shift": "of the output shift",
    "attention_change": "of the attention change",
    "largest_shift": "of tokens by their largest shift",
}
"""What a variant is called behind its measure."""

MEASURES = {
    "loss": _of(
        "Loss",
        f"Mean of &minus;log {_P}(true next token), the head reading the state of loop <i>r</i>.",
    ),
    "loss_gain": _of(
        "Gain in loss",
        "Mean over tokens of the loss after loop <i>r</i>&minus;1 less that after loop <i>r</i>, "
        "paired by token.",
    ),
    "top1": _of(
        "Top-1 accuracy", f"Share of tokens whose most likely token under {_P} is the true one."
    ),
    "rank": _of(
        "Median rank", f"Median over tokens of the rank of the true next token in {_P}; 1 is best."
    ),
    "output_entropy": _of("Output entropy", f"Mean over tokens of the entropy of {_P}."),
    "output_shift": _of(
        "Output shift",
        f"Mean over tokens of KL({_P} ‖ <i>p</i><sup>(<i>r</i>&minus;1)</sup>): what loop "
        "<i>r</i> changes about the prediction, the gain.",
    ),
    "offset_cost": _of(
        "Offset cost",
        "Ω(<i>r</i>), mean over tokens <i>i</i> ≥ 1 of a document of "
        "‖<i>h</i><sub><i>i</i></sub><sup>(<i>r</i>&minus;1)</sup> &minus; "
        "<i>h</i><sub><i>i</i>&minus;1</sub><sup>(<i>r</i>&minus;1)</sup>‖: how far the shifted "
        "input of loop <i>r</i> is from the token's own.",
    ),
    "step_size": _of("Step size", f"Mean over tokens of ‖{_H} &minus; {_BEFORE}‖."),
    "alignment": _of(
        "Update alignment",
        f"Mean over tokens of the cosine of {_H} &minus; {_BEFORE} and the step before it; "
        "negative: the loop takes back part of the last step.",
    ),
    "effective_rank": _of(
        "Effective rank",
        "exp(&minus;∑ <i>s</i> log <i>s</i>), <i>s</i> the singular values of a sequence's "
        "normalised states, scaled to sum 1; mean over sequences.",
    ),
    "fixed_point_gap": _of(
        "Fixed-point gap",
        f"Mean over tokens of ‖{_H} &minus; <i>f</i>({_H})‖, <i>f</i> one more whole loop.",
    ),
    "attention_entropy": _of(
        "Attention entropy", "Mean over heads and queries of the entropy of the attention."
    ),
    "attention_change": _of(
        "Attention change",
        "Mean over heads and queries of KL(<i>A</i><sup>(<i>r</i>)</sup> ‖ "
        "<i>A</i><sup>(<i>r</i>&minus;1)</sup>), <i>A</i> the mixture of both branches by the "
        "gate.",
    ),
    "gate": _of("Gate", "Mean weight of the attention to the first loop's keys, 0 to 1."),
    "head_rank": _of(
        "Effective rank of heads",
        "Effective rank of the heads' attention vectors of a query, mean over a subset.",
    ),
    "head_cosine": _of(
        "Cosine of heads",
        "Mean cosine of two heads' attention vectors of a query, on the same subset.",
    ),
    "concentration": _of(
        "Concentration",
        "Share of each loop in the output shift and in the attention change of all loops, and of "
        "tokens whose largest output shift it brings.",
    ),
}


def title(measure: str, variant: str = "") -> str:
    """Return what a measure is called; its own name where it is not one of ours."""
    name = MEASURES[measure].title if measure in MEASURES else measure
    return f"{name}, {VARIANTS.get(variant, variant)}" if variant else name
