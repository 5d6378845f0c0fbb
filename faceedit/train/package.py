"""Put the trained parts together into a checkpoint folder.

``python -m faceedit.train package --generator FILE --encoder FILE --frame FILE --directions FILE
--card FILE --out faceedit/weights/default``
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file

from faceedit.config import AttributeInfo, CropConfig, EncoderConfig, GeneratorConfig, ModelConfig
from faceedit.directions import Directions
from faceedit.editor import FaceEditor
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.models.frame_net import FrameNet
from faceedit.train.checkpoint import load_generator, read_metadata

_DESCRIPTIONS = {
    "smile": "smiling; negative closes the mouth and lowers its corners",
    "age": "older; negative is younger",
    "gender": "more masculine; negative is more feminine",
    "glasses": "eyeglasses; negative takes them off",
    "beard": "a beard; negative shaves",
}


def _success(report: dict, name: str) -> dict[str, float]:
    """What the directions stage measured of one attribute, on held-out generated faces."""
    got, lost = report["turned"][name]
    found = {"got_at_plus_1": got, "lost_at_minus_1": lost, "generated_faces": report["faces"]}
    return {key: value for key, value in found.items() if not math.isnan(value)}


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="faceedit.train package", description=__doc__)
    for name in ("generator", "encoder", "frame", "directions", "card", "provenance", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--licence", required=True)
    parser.add_argument("--looks", type=int, default=1, help="corrections that the encoder makes")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)

    generator = load_generator(args.generator)
    encoder = EfficientNetEncoder(generator.n_styles, looks=args.looks)
    encoder.load_state_dict(load_file(args.encoder))
    frame_net = FrameNet()
    frame_net.load_state_dict(load_file(args.frame))
    directions = Directions.load(args.directions)
    report = json.loads(read_metadata(args.directions)["source"])["report"]
    config = ModelConfig(
        generator=GeneratorConfig("mobile_stylegan", generator.resolution, generator.n_styles, generator.style_dim),
        encoder=EncoderConfig("efficientnet_lite", encoder.input_size, {"looks": args.looks}),
        crop=CropConfig(generator.resolution, {}),
        attributes={
            name: AttributeInfo(
                range=directions.ranges[name],
                aliases=directions.aliases[name],
                description=_DESCRIPTIONS.get(name, ""),
                success=_success(report, name),
            )
            for name in directions.names
        },
        licence=args.licence,
        provenance=json.loads(args.provenance.read_text()),
    )
    editor = FaceEditor(config, generator, encoder.float(), frame_net.float(), directions, args.card.read_text())
    folder = editor.save_pretrained(args.out, overwrite=args.overwrite, dtype=torch.float16)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB")
    return 0
