"""MediaPipe's selfie segmentation (PyPI ``mediapipe``) to our state dict, without MediaPipe or TensorFlow."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from torch import Tensor, nn

from faceedit.convert.tflite import convolution, read_mediapipe
from faceedit.models.person_net import PersonNet

_FILE = "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite"


def convert(source: str | Path) -> dict[str, Tensor]:
    """Read the network from the wheel, or from the .tflite file in it.

    Args:
        source: The ``mediapipe-0.10.21-*.whl`` file, or its ``selfie_segmentation.tflite``.

    Returns:
        float32 state dict of `faceedit.models.person_net.PersonNet`.

    Raises:
        ConversionError: A file is missing, truncated or not the expected network.
    """
    return read_mediapipe(source, _FILE, "the selfie segmentation", _state)


def _state(constants: dict[str, Tensor]) -> dict[str, Tensor]:
    net, state, numbers = PersonNet(), {}, {"conv2d": count(), "depthwise_conv2d": count()}
    # The layers are registered in the order in which the file numbers them; the first of a kind has no number.
    for key, layer in net.named_modules():
        if isinstance(layer, nn.ConvTranspose2d):
            name = "segment"
        elif isinstance(layer, nn.Conv2d):
            kind = "depthwise_conv2d" if layer.groups > 1 else "conv2d"
            name = f"{kind}_{number}" if (number := next(numbers[kind])) else kind
        else:
            continue
        parts = convolution(constants, name)
        if name == "segment":
            parts["weight"] = parts["weight"].transpose(0, 1).contiguous()  # in x out for a transposed one
        state |= {f"{key}.{part}": value for part, value in parts.items()}
    net.load_state_dict(state)
    return state
