"""``python -m faceedit.train STAGE ...``: run one stage of training, by name.

In several processes: ``torchrun --nproc_per_node=2 -m faceedit.train STAGE ...``.
"""

from __future__ import annotations

import difflib
import importlib
import sys

from faceedit.errors import ConfigError, FaceEditError, UsageError

# Stage -> (module, what it makes). A module is imported only when its stage runs.
STAGES = {
    "preview": ("preview", "the generator's early-exit image head"),
    "landmarks": ("frame", "the network that finds a face's crop frame, in place of landmarks"),
    "crops": ("crops", "aligned crops of real photographs"),
    "identity": ("identity", "the face identity network of the losses"),
    "lpips": ("perceptual", "the perceptual distance's weights, AlexNet or VGG16"),
    "classifier": ("classifier_task", "the CelebA attribute classifiers, for the losses and to judge"),
    "encoder": ("encoder", "the encoder: picture to W+ and content maps"),
    "style": ("style", "the paper's style branch: learned, sparse directions"),
    "content": ("content", "the content branch, relevance maps and fusion"),
    "calibrate": ("calibrate", "the length of learned directions: strength 1 means the same for all"),
    "parts": ("parts", "the parts net: where faces are bare, and where hair is"),
    "latent-classifier": ("latent_classifier", "the latent classifier: strength 1 means the same for all faces"),
    "fit-directions": ("fit_directions", "a direction of your own, from tens of labelled pictures"),
    "package": ("package", "the checkpoint folder, from the trained parts"),
    "evaluate": ("evaluate", "the published numbers: evaluate inversion, evaluate style"),
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
        The exit status: that of the stage, 1 where it failed with an error of ours, 2 where a stage or
        an argument is not one.
    """
    if argv[:1] in (["-h"], ["--help"]):
        print(usage())
        return 0
    if not argv or argv[0] not in STAGES:
        if argv:
            close = difflib.get_close_matches(argv[0], STAGES)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            print(f"unknown stage {argv[0]!r}{hint}", file=sys.stderr)
        print(usage(), file=sys.stderr)
        return 2
    module = importlib.import_module(f"faceedit.train.{STAGES[argv[0]][0]}")
    try:
        return module.main(argv[1:])
    except FaceEditError as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 2 if isinstance(error, (ConfigError, UsageError)) else 1
    finally:
        importlib.import_module("faceedit.train.processes").leave()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
