"""ArcFace's published IR-SE50 weights (``model_ir_se50.pth``, a plain state dict) to our module."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from faceedit.hub import load_module
from faceedit.models.ir_se50 import ArcFaceNet


def arcface(tensors: Mapping[str, Tensor]) -> ArcFaceNet:
    """The network with the file's weights; its ``state_dict()`` has the same names.

    Args:
        tensors: Of InsightFace_Pytorch's ``Backbone(112, 50, mode="ir_se")``.

    Raises:
        CheckpointError: A tensor is missing, extra or mis-shaped.
    """
    with torch.device("meta"):
        network = ArcFaceNet()
    network.to_empty(device="cpu")
    load_module(network, tensors, advice="Only IR-SE50 for chips of 112 pixels, model_ir_se50.pth, can be converted.")
    return network.eval()
