"""``python -m faceedit.train STAGE ...``: run one stage of training, by name."""

from __future__ import annotations

import importlib
import sys

# Stage -> (module, what it makes). A module is imported only when its stage runs.
STAGES = {
    "classifier": ("classifier", "the CelebA attribute classifier that labels generated faces"),
    "directions": ("fit_directions", "attribute directions fitted on labelled generated faces"),
    "fit-directions": ("fit_directions_from_pictures", "a direction of your own, from tens of labelled pictures"),
    "frame": ("frame", "the network that finds a face's crop frame"),
    "encoder": ("encoder", "the encoder: picture to W+ and content maps"),
    "preview": ("preview", "the generator's early-exit image head"),
    "identity": ("identity", "the face identity network that the encoder's loss uses"),
    "crops": ("crops", "aligned crops of real photographs for the encoder"),
    "package": ("package", "the checkpoint folder, from the trained parts"),
    "evaluate": ("evaluate", "the published numbers, measured through FaceEditor"),
}


def usage() -> str:
    """Return the help text: one line a stage."""
    lines = ["usage: python -m faceedit.train STAGE [options]   (STAGE --help lists its options)", ""]
    return "\n".join(lines + [f"  {stage:<15} {what}" for stage, (_, what) in STAGES.items()])


def main(argv: list[str]) -> int:
    """Run the stage named by the first argument.

    Args:
        argv: The stage's name, then its own arguments.

    Returns:
        The exit status: that of the stage, or 2 where none or an unknown one was named.
    """
    if argv[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if not argv or argv[0] not in STAGES:
        if argv:
            print(f"unknown stage {argv[0]!r}", file=sys.stderr)
        print(usage(), file=sys.stderr)
        return 2
    module = importlib.import_module(f"faceedit.train.{STAGES[argv[0]][0]}")
    return module.main(argv[1:])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
