"""A whole editor with tiny networks and random weights: every behaviour, in milliseconds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

from faceedit import FaceEditor
from faceedit.config import AttributeInfo, CropConfig, EncoderConfig, FusionConfig, GeneratorConfig, ModelConfig
from faceedit.directions import Directions
from faceedit.models.e4e_encoder import Encoder4Editing
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.encoder import Encoder
from faceedit.models.face_mesh import LEFT_EYE, LEFT_MOUTH, N_POINTS, RIGHT_EYE, RIGHT_MOUTH
from faceedit.models.frame_net import FrameNet
from faceedit.models.fusion import FusionGenerator
from faceedit.models.generator import Generator
from faceedit.models.latent_classifier import LatentClassifier
from faceedit.models.mobile_stylegan import MobileStyleGAN
from faceedit.models.psp_encoder import GradualStyleEncoder
from faceedit.models.stylegan2 import StyleGAN2

SIZE, ROWS, DIM = 64, 8, 24
RANGES = {
    "smile": (-2.0, 2.0),
    "age": (-1.5, 1.5),
    "gender": (-1.0, 1.0),
    "glasses": (-1.0, 2.0),
    "beard": (-1.0, 1.0),
}


PSP_OPTIONS = {"widths": [16, 16, 16, 32], "units": [1, 1, 1, 1]}


def make_encoder(name: str) -> tuple[Encoder, EncoderConfig]:
    """An encoder of each kind that config.json may name, and what it says of it."""
    if name == "efficientnet_lite":
        encoder: Encoder = EfficientNetEncoder(ROWS, DIM, input_size=32, width=8, hidden=16)
        torch.nn.init.normal_(encoder.to_base.weight, std=0.3)
        torch.nn.init.normal_(encoder.to_offsets.weight, std=0.1)
        return encoder, EncoderConfig(name, 32, {"width": 8, "hidden": 16})
    kind = {"psp": GradualStyleEncoder, "e4e": Encoder4Editing}[name]
    encoder = kind(ROWS, DIM, 32, **PSP_OPTIONS)
    encoder.latent_mean.normal_(std=0.3)
    encoder.latent_std.fill_(0.5)
    return encoder, EncoderConfig(name, 32, PSP_OPTIONS)


FUSION_OPTIONS = {"levels": [2, 3], "widths": [8, 6], "dim": 4, "relevance_dim": 4, "detail": True}


def make_fusion(generator: Generator, encoder: Encoder, names: tuple[str, ...]) -> FusionGenerator:
    """A content branch that does something."""
    fusion = FusionGenerator(generator, encoder, names, **FUSION_OPTIONS)
    torch.nn.init.normal_(fusion.content.detail.weight, std=0.3)
    for extractor in fusion.content.extractors:
        torch.nn.init.normal_(extractor.leave.weight, std=0.3)
        torch.nn.init.normal_(extractor.adain.affine.weight, std=0.3)
    return fusion


def make_editor(encoder_name: str = "efficientnet_lite", content: bool = False) -> FaceEditor:
    """The editor; equal weights on every call."""
    torch.manual_seed(0)
    generator = MobileStyleGAN((16, 16, 16, 16), style_dim=DIM, preview_level=2)
    for name, parameter in generator.named_parameters():
        if name.endswith(("style.bias", "up.bias")):
            parameter.fill_(1.4)  # so that no level fades
    generator.head.weight.mul_(0.5)
    generator.preview_head.start_from(generator.levels[2:], generator.head)
    encoder, encoder_config = make_encoder(encoder_name)
    directions = Directions({name: 0.5 * torch.randn(ROWS, DIM) for name in RANGES}, ranges=RANGES)
    config = ModelConfig(
        generator=GeneratorConfig(
            "mobile_stylegan", SIZE, ROWS, DIM,
            {"channels": [16, 16, 16, 16], "style_dim": DIM, "preview_level": 2},
        ),
        encoder=encoder_config,
        crop=CropConfig(SIZE, {}),
        attributes={
            name: AttributeInfo(directions.ranges[name], directions.aliases[name], description=name)
            for name in directions.names
        },
        licence="test",
    )  # fmt: skip
    editor = FaceEditor(config, generator, encoder, frame_net(), directions, "# Tiny\n")
    if content:
        names = directions.names[:3]  # so that some attributes have no content direction
        editor = editor.with_fusion(make_fusion(generator, encoder, names), FusionConfig(tuple(names), FUSION_OPTIONS))
    return editor


def make_latent_classifier(names: tuple[str, ...] = ("smile", "age", "glasses")) -> LatentClassifier:
    """One to which each face has as much of an attribute as its code has of the direction."""
    directions = make_editor().directions.vectors
    classifier = LatentClassifier(names, DIM, rows=4, hidden=len(names))
    with torch.no_grad():
        for layer in (classifier.hidden[1], classifier.hidden[4], classifier.scores):
            layer.weight.copy_(torch.eye(*layer.weight.shape))
            layer.bias.zero_()
        for i, name in enumerate(names):
            flat = directions[name][:4].flatten()
            classifier.hidden[1].weight[i] = flat / flat.square().sum()
        # Far from zero, where the hidden layers are linear.
        classifier.hidden[1].bias.fill_(100)
        classifier.scores.bias.fill_(-100)
    classifier.goals.fill_(0.6)
    classifier.shortest.fill_(0.1)
    return classifier.eval().requires_grad_(False)


def frame_net() -> FrameNet:
    """Answers a fixed face whatever it sees: the frame is the first window, a tenth of a half higher."""
    net = FrameNet()
    x, y = torch.linspace(-0.6, 0.6, N_POINTS), torch.linspace(-2 / 3, 2 / 3, N_POINTS)
    points = torch.stack([x, y], -1)
    points[list(LEFT_EYE)], points[list(RIGHT_EYE)] = torch.tensor([[-0.25, -0.15]]), torch.tensor([[0.25, -0.15]])
    points[[LEFT_MOUTH, RIGHT_MOUTH]] = torch.tensor([[-0.2, 0.35], [0.2, 0.35]])
    with torch.no_grad():
        net.mesh.points.weight.zero_()
        net.mesh.points.bias.copy_((points.flatten() + 1) * net.mesh.size / 2)
    return net


def make_stylegan2_editor() -> FaceEditor:
    """The same on a tiny StyleGAN2, with directions that were made for more rows than it has."""
    torch.manual_seed(0)
    generator = StyleGAN2(SIZE, style_dim=DIM, mapping_layers=2, channels=(16, 16, 16, 12, 8))
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            parameter.fill_(0.1)
    for head in generator.heads:
        head.weight.mul_(0.2)
    encoder = EfficientNetEncoder(generator.n_styles, DIM, input_size=32, width=8, hidden=16)
    torch.nn.init.normal_(encoder.to_base.weight, std=0.3)
    torch.nn.init.normal_(encoder.to_offsets.weight, std=0.1)
    directions = Directions({"smile": 0.5 * torch.randn(18, DIM)}).with_rows(generator.n_styles)
    config = ModelConfig(
        generator=GeneratorConfig("stylegan2", SIZE, generator.n_styles, DIM, generator.options),
        encoder=EncoderConfig("efficientnet_lite", 32, {"width": 8, "hidden": 16}),
        crop=CropConfig(SIZE, {}),
        attributes={"smile": AttributeInfo((-1.0, 1.0), directions.aliases["smile"])},
        licence="test",
    )
    return FaceEditor(config, generator, encoder, frame_net(), directions, "# Tiny\n")


def photo(height: int = 96, width: int = 128, seed: int = 0) -> np.ndarray:
    """A smooth colour picture ``(height, width, 3)`` uint8."""
    random = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8, generator=random)
    picture = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)[0]
    return (picture * 255).byte().permute(1, 2, 0).contiguous().numpy()
