"""``python -m faceedit.train evaluate WHAT ...``: the published numbers, by what they measure."""

from __future__ import annotations

import importlib
import sys

# What -> (module, what it measures). A module is imported only when it is asked for.
KINDS = {
    "inversion": ("evaluate_inversion", "reconstructions of photographs, and identity after edits"),
    "style": ("evaluate_style", "directions: success, side effects, identity, sparsity"),
    "content": ("evaluate_content", "refined edits: reconstruction, fidelity, edits kept, ablations; figures 8, 10, 11"),
    "frame": ("evaluate_frame", "the crop frame against 68-point crops"),
}


def usage() -> str:
    """Return the help text: one line a kind."""
    lines = ["usage: python -m faceedit.train evaluate WHAT [options]   (WHAT --help lists its options)", ""]
    return "\n".join(lines + [f"  {kind:<11} {what}" for kind, (_, what) in KINDS.items()])


def main(argv: list[str]) -> int:
    """Measure what the first argument names.

    Args:
        argv: "inversion", "style", "content" or "frame", then its own arguments.

    Returns:
        The exit status; 2 where nothing, or nothing known, was named.
    """
    if argv[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if not argv or argv[0] not in KINDS:
        if argv:
            print(f"unknown kind of evaluation {argv[0]!r}", file=sys.stderr)
        print(usage(), file=sys.stderr)
        return 2
    return importlib.import_module(f"faceedit.train.{KINDS[argv[0]][0]}").main(argv[1:])
