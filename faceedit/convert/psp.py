"""Published pSp and e4e checkpoints to our encoders; pure functions on what was read from the file.

A checkpoint is ``{"state_dict": {"encoder.*", "decoder.*"}, "latent_avg": ..., "opts": {...}}``.
The decoder is StyleGAN2 in rosinality's naming and is left to that converter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from faceedit.convert.stylegan2 import size_along
from faceedit.errors import CheckpointError
from faceedit.hub import load_module
from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.encoder import Encoder
from faceedit.models.generator import Generator
from faceedit.models.ir_se50 import WIDTHS
from faceedit.models.psp_encoder import GradualStyleEncoder

Kind = Literal["psp", "e4e"]

_CLASSES: dict[str, type[GradualStyleEncoder]] = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}
_TYPES: dict[str, Kind] = {"GradualStyleEncoder": "psp", "Encoder4Editing": "e4e"}
# Options that only one of the two published trainings has.
_TELLING: dict[str, Kind] = {
    "progressive_steps": "e4e", "w_discriminator_lambda": "e4e", "delta_norm": "e4e",
    "learn_in_w": "psp", "label_nc": "psp", "w_norm_lambda": "psp",
}  # fmt: skip
_STD_SAMPLES = 4096
_MOST_BLOCKS = 200  # of a body; a forged number in a name would have us build for hours


class Parts(NamedTuple):
    """What a checkpoint holds; names without ``encoder.`` and ``decoder.``.

    ``kind`` is "psp" or "e4e", the names of our encoders in config.json. ``latent_avg`` is
    ``(512,)`` or ``(n_styles, 512)``, float32; None where codes do not start from a mean.
    """

    kind: Kind
    encoder: dict[str, Tensor]
    decoder: dict[str, Tensor]
    latent_avg: Tensor | None


def split(checkpoint: Mapping[str, Any], kind: Kind | None = None) -> Parts:
    """Take a checkpoint apart and tell which of the two encoders it holds.

    Args:
        checkpoint: The file's dictionary; ``opts`` as a dictionary, or missing.
        kind: "psp" or "e4e" where the file does not say it: both encoders have the same tensors.

    Raises:
        CheckpointError: ``state_dict``, ``latent_avg`` or a network is missing, the encoder is of
            another type, or nothing tells which one it is.
    """
    state, opts = checkpoint.get("state_dict"), checkpoint.get("opts") or {}
    if not isinstance(state, Mapping) or not isinstance(opts, Mapping):
        raise CheckpointError(
            "A pSp or e4e checkpoint has a dictionary 'state_dict' and mostly one 'opts'; this file has "
            f"{', '.join(map(repr, checkpoint)) or 'nothing'}. Give the file as its authors published it."
        )
    parts = {
        prefix: {key[len(prefix) + 1 :]: value for key, value in state.items() if key.startswith(f"{prefix}.")}
        for prefix in ("encoder", "decoder")
    }
    for prefix, tensors in parts.items():
        if not tensors:
            raise CheckpointError(f"The checkpoint has no tensors {prefix}.*, so it is not of pSp or e4e.")
    stray = [key for key in state if key.partition(".")[0] not in parts]
    if stray:
        raise CheckpointError(f"The checkpoint has tensors of neither encoder nor decoder: {', '.join(stray[:5])}.")
    return Parts(kind or _kind(checkpoint, opts), parts["encoder"], parts["decoder"], _latent_avg(checkpoint, opts))


def count_styles(tensors: Mapping[str, Tensor]) -> int:
    """Rows of W+ that an encoder's tensors make: how many ``styles.<row>`` there are."""
    return len({key.split(".")[1] for key in tensors if key.startswith("styles.")})


def encoder(
    kind: Kind,
    tensors: Mapping[str, Tensor],
    latent_avg: Tensor | None,
    n_styles: int,
    latent_std: Tensor | None = None,
) -> Encoder:
    """The encoder with the checkpoint's weights.

    Args:
        kind: "psp" or "e4e".
        tensors: Official names, without ``encoder.``.
        latent_avg: ``(512,)``, ``(1, 512)`` or ``(n_styles, 512)``; codes start from it. None means from zero.
        n_styles: Rows of the generator's W+: 18 at 1024 pixels, 16 at 512, 14 at 256.
        latent_std: ``(512,)`` from :func:`latent_std`, the unit in which inversions are refined; None
            leaves it one.

    Raises:
        CheckpointError: A tensor is missing, extra or mis-shaped.
    """
    # Without memory at first: 270 million weights would be drawn at random only to be replaced.
    with torch.device("meta"):
        network = _CLASSES[kind](n_styles, **sizes(tensors))
    network.to_empty(device="cpu")
    mean = torch.zeros(network.style_dim) if latent_avg is None else latent_avg.float()
    if mean.shape not in ((network.style_dim,), (1, network.style_dim), (n_styles, network.style_dim)):
        raise CheckpointError(
            f"latent_avg has shape {tuple(mean.shape)} and must be ({network.style_dim},) or "
            f"({n_styles}, {network.style_dim})."
        )
    given = {f"encoder.{name}": tensor for name, tensor in tensors.items()}
    given["encoder.latent_mean"] = mean.expand(n_styles, -1)
    given["encoder.latent_std"] = torch.ones(network.style_dim) if latent_std is None else latent_std
    load_module(
        network, given, "encoder",
        "Only pSp and e4e encoders with an IR-SE50 body, RGB input and W+ output can be converted.",
    )  # fmt: skip
    return network.eval()


def sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Arguments of the encoder, told by most of the tensors that they shape; none where that fails."""
    numbers = {int(key.split(".")[1]) for key in tensors if key.startswith("body.")}
    blocks = sorted(number for number in numbers if number < _MOST_BLOCKS)
    starts = [i for i in blocks if i == 0 or any(key.startswith(f"body.{i}.shortcut_layer.") for key in tensors)]
    if len(starts) != len(WIDTHS):
        return {}
    ends = [*starts[1:], blocks[-1] + 1]
    units = [end - start for start, end in zip(starts, ends)]
    norms = ("weight", "bias", "running_mean", "running_var")
    widths = [
        size_along(tensors, [(f"body.{i}.res_layer.4.{part}", 0) for i in range(start, end) for part in norms], "pSp")
        for start, end in zip(starts, ends)
    ]
    dim = size_along(tensors, [(key, 0) for key in tensors if key.endswith(".linear.bias")], "pSp")
    halvings = len({key.split(".")[3] for key in tensors if key.startswith("styles.0.convs.")})
    return {"style_dim": dim, "input_size": 16 * 2**halvings, "widths": widths, "units": units}


@torch.no_grad()
def latent_std(generator: Generator) -> Tensor:
    """Standard deviation ``(512,)`` of a generator's W, over fixed draws."""
    z = torch.randn(_STD_SAMPLES, generator.style_dim, generator=torch.Generator().manual_seed(0))
    return generator.map(z.to(generator.mean_latent)).float().std(0).cpu()


def _kind(checkpoint: Mapping[str, Any], opts: Mapping[str, Any]) -> Kind:
    named = opts.get("encoder_type")
    if named is not None:
        if named not in _TYPES:
            raise CheckpointError(
                f"The checkpoint's encoder is of type {named!r}; {' and '.join(_TYPES)} can be converted."
            )
        return _TYPES[named]
    if "discriminator_state_dict" in checkpoint:
        return "e4e"
    told = {kind for option, kind in _TELLING.items() if option in opts}
    if len(told) == 1:
        return told.pop()
    raise CheckpointError(
        "The checkpoint's opts have no encoder_type, and the tensors of pSp and e4e have equal names: "
        "say which it is with kind='psp' or kind='e4e' (--format on the command line)."
    )


def _latent_avg(checkpoint: Mapping[str, Any], opts: Mapping[str, Any]) -> Tensor | None:
    mean = checkpoint.get("latent_avg")
    if isinstance(mean, Tensor):
        return mean.float()
    if opts.get("start_from_latent_avg") is False:
        return None
    raise CheckpointError(
        "The checkpoint has no tensor latent_avg, the code that its encoder starts from: take one that was "
        "saved for inference, with start_from_latent_avg."
    )
