"""Put the trained parts together into a checkpoint folder.

``python -m faceedit.train package --generator FILE --encoder FILE --frame FILE --directions FILE --report FILE
[--latent-classifier FILE] --content FOLDER --card FILE --out faceedit/weights/default``
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import torch

from faceedit.config import CropConfig, EncoderConfig, FusionConfig, GeneratorConfig, ModelConfig
from faceedit.directions import Directions
from faceedit.editor import FaceEditor
from faceedit.errors import DataError
from faceedit.models.efficientnet_encoder import EfficientNetEncoder
from faceedit.hub import load_module
from faceedit.models.fusion import FusionGenerator
from faceedit.models.person_net import PersonNet
from faceedit.train import frame, latent_classifier, parts
from faceedit.train.checkpoint import load_encoder, load_generator, read_tensors

# Figures of `evaluate style` that go into the checkpoint, each attribute's own.
_FIGURES = ("got at +1", "lost at -1", "got at top", "lost at bottom", "identity", "non-zero")


def measured(report: dict, name: str) -> dict[str, Any]:
    """What `evaluate style` found of one attribute on generated faces, as the config holds it.

    Raises:
        DataError: The report has no such attribute, or was made of other faces.
    """
    try:
        found = report["generated"]
        figures = {key.replace(" ", "_"): found["attributes"][name][key]["value"] for key in _FIGURES}
        figures = {key: value for key, value in figures.items() if value is not None}
        return {**figures, "generated_faces": found["faces"], "judge": report["judge"]}
    except KeyError as error:
        raise DataError(f"the report of `evaluate style` has no {error} of {name!r}: measure these directions first") from None


def load_fusion(run: Path, editor: FaceEditor) -> tuple[FusionGenerator, FusionConfig]:
    """The content branch of a run, on an editor's networks, and what config.json says of it.

    Args:
        run: Folder of the content stage: ``recipe.json`` and ``content.safetensors``.
        editor: With the generator and encoder that it was trained on.

    Raises:
        CheckpointNotFoundError, CheckpointError: There is no such run, or it does not fit.
    """
    tensors = read_tensors(run / "content.safetensors")
    recipe = json.loads((run / "recipe.json").read_text())
    options = {name: recipe[name] for name in ("levels", "widths", "follow", "relevance", "compared", "detail") if name in recipe}
    start = "content.directions."
    # Sorted, for a file keeps its tensors in no order of ours.
    attributes = tuple(sorted(name.removeprefix(start) for name in tensors if name.startswith(start)))
    fusion = FusionGenerator(editor.generator, editor.encoder, attributes, **options)
    load_module(fusion, tensors, advice="The run must be of this generator and encoder.")
    return fusion, FusionConfig(attributes, options)


def main(argv: list[str]) -> int:
    """Command line entry; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="faceedit.train package", description=__doc__)
    for name in ("generator", "encoder", "frame", "directions", "card", "provenance", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True, help="style.json of `evaluate style` on these directions")
    parser.add_argument("--person", type=Path, help="the person net's weights; none: edits may show beside the person")
    parser.add_argument("--parts", type=Path, help="the parts net, of this encoder; none: edits may show through hair")
    parser.add_argument("--content", type=Path, help="run of the content stage; none packages the style branch alone")
    parser.add_argument("--latent-classifier", type=Path, help="of these directions; none: strength 1 is their length")
    parser.add_argument("--attributes", nargs="+", metavar="NAME", help="those to ship, in this order; all, if not given")
    parser.add_argument("--licence", required=True)
    parser.add_argument("--looks", type=int, default=1, help="corrections that the encoder makes")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)

    generator = load_generator(args.generator)
    encoder = EfficientNetEncoder(generator.n_styles, looks=args.looks)
    load_encoder(encoder, args.encoder)
    frame_net = frame.load(args.frame)
    person_net: PersonNet | None = None
    if args.person:
        person_net = PersonNet()
        person_net.load_state_dict(read_tensors(args.person))
    parts_net = parts.load(args.parts, encoder) if args.parts else None
    learned = Directions.load(args.directions)
    report = json.loads(args.report.read_text())
    names = [learned.resolve(name) for name in args.attributes or learned.names]
    attributes = {
        name: dataclasses.replace(learned.attributes[name], success=measured(report, name)) for name in names
    }
    directions = Directions(
        {name: learned.vectors[name] for name in names},
        aliases={name: info.aliases for name, info in attributes.items()},
        ranges={name: info.range for name, info in attributes.items()},
        licence=learned.licence,
    )
    config = ModelConfig(
        generator=GeneratorConfig("mobile_stylegan", generator.resolution, generator.n_styles, generator.style_dim),
        encoder=EncoderConfig("efficientnet_lite", encoder.input_size, {"looks": args.looks}),
        crop=CropConfig(
            generator.resolution, frame_net={}, person_net=None if person_net is None else {},
            parts_net=None if parts_net is None else parts_net.options,
        ),
        attributes=attributes,
        licence=args.licence,
        provenance=json.loads(args.provenance.read_text()),
    )
    editor = FaceEditor(
        config, generator, encoder.float(), frame_net.float(), directions, args.card.read_text(), person_net=person_net,
        parts_net=parts_net,
    )
    if args.latent_classifier:
        known = latent_classifier.load(args.latent_classifier)
        editor = editor.with_latent_classifier(known.without(set(known.attributes) - set(names)))
    if args.content:
        editor = editor.with_fusion(*load_fusion(args.content, editor))
    folder = editor.save_pretrained(args.out, overwrite=args.overwrite, dtype=torch.float16)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder}: {size:.1f} MB")
    return 0
