"""Make the weights of the networks that find crop frames and persons: ``python -m faceedit.train landmarks``.

Nothing is trained: they are those of MediaPipe's face mesh and selfie segmentation, read from its wheel.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from faceedit.convert import face_mesh, person_net
from faceedit.models.frame_net import FrameNet
from faceedit.train.checkpoint import save_tensors

log = logging.getLogger(__name__)


def load(path: Path) -> FrameNet:
    """A frame net from its weights, in evaluation mode."""
    net = FrameNet()
    net.load_state_dict(load_file(path))
    return net.eval()


def main(argv: Sequence[str]) -> int:
    """Command line entry; see the module's docstring."""
    summary = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="faceedit.train landmarks", description=summary)
    parser.add_argument("--mediapipe", required=True, type=Path, help="the wheel of mediapipe 0.10.21")
    parser.add_argument("--out", required=True, type=Path, help="the frame net's weights, safetensors")
    parser.add_argument("--person", type=Path, help="the person net's weights, safetensors; none leaves them out")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    net = FrameNet()
    net.mesh.load_state_dict(face_mesh.convert(args.mediapipe))
    made = {args.out: net.state_dict()}
    if args.person:
        made[args.person] = person_net.convert(args.mediapipe)
    for path, weights in made.items():
        save_tensors(weights, path)
        log.info("%d weights written to %s", sum(w.numel() for w in weights.values()), path)
    return 0
