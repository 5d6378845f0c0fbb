"""Make the weights of the network that finds crop frames: ``python -m faceedit.train landmarks``.

Nothing is trained: they are those of MediaPipe's face mesh, read from its wheel.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from faceedit.convert.face_mesh import convert
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
    parser.add_argument("--out", required=True, type=Path, help="the network's weights, safetensors")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    net = FrameNet()
    net.mesh.load_state_dict(convert(args.mediapipe))
    save_tensors(net.state_dict(), args.out)
    log.info("%d weights written to %s", sum(p.numel() for p in net.parameters()), args.out)
    return 0
