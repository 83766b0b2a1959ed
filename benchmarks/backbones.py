"""Share of each backbone that the mask of the default ratio switches off, as Markdown.

    python -m benchmarks.backbones [NAME ...]

Without names, every backbone of torchvision: 82 networks, of which the largest needs 8 GB. Weights
are fresh, of seed 0. Nothing is timed, so one run says it all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from sdclr import PruneRule, magnitude_masks
from sdclr.backbone import build_backbone, known_backbones
from sdclr.prunable import CONV_SHARE, conv_share, is_published_rule, ranked_weights, switched_off
from sdclr.prune import kept_fractions

RULE = PruneRule(prune_ratio=0.9)
HEAD = (
    "| backbone | convolutions hold | pruned | ranked by | switched off | least kept of a layer |\n"
    "|---|---|---|---|---|---|\n"
)


def line(name: str) -> str:
    """Return the row of one backbone."""
    backbone, _ = build_backbone(name, stem="imagenet", seed=0)
    share = conv_share(backbone)
    kept = kept_fractions(magnitude_masks(ranked_weights(backbone), RULE))
    cells = [
        f"`{name}`",
        f"{100 * share:.1f} %",
        "convolutions" if share >= CONV_SHARE else "and linear layers",
        "size" if is_published_rule(backbone) else "size in its layer",
        f"{100 * switched_off(backbone, RULE):.1f} %",
        f"{100 * min(kept.values()):.2f} %",
    ]
    return f"| {' | '.join(cells)} |\n"


def main(names: Sequence[str]) -> int:
    """Print the table, row by row."""
    sys.stdout.write(HEAD)
    for name in names or known_backbones():
        sys.stdout.write(line(name))
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
