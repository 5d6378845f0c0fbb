"""``faceedit convert``: which file goes which way, and what is written."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faceedit.cli import report
from faceedit.cli.paths import CODE_SUFFIX, refuse_existing
from faceedit.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from faceedit.convert.checkpoint import Checkpoint
    from faceedit.convert.directions import Request
    from faceedit.convert.recognise import Source

__all__ = ["convert"]

_GRID = "verify.png"
# The options that only some files have a use for.
_OF_NETWORKS, _OF_DIRECTIONS = ("encoder",), ("generator",)


def convert(args: argparse.Namespace) -> int:
    """Convert one foreign file, with what goes with it."""
    from faceedit.convert import directions
    from faceedit.convert.recognise import DIRECTIONS, GENERATORS, recognise

    _refuse_occupied(args)
    if not os.path.exists(args.source) and "=" in args.source:
        wanted = [directions.parse(text) for text in (args.source, *args.directions)]
        _refuse_options(args, _OF_NETWORKS, "a direction")
        facts = _directions(args, _found(wanted, args.format))
    else:
        source = recognise(args.source, args.format)
        if source.kind in DIRECTIONS:
            raise UsageError(
                f"{args.source!r} is a direction without a name. Write NAME={args.source}, where NAME is what the "
                "attribute is to be called, such as smile."
            )
        _refuse_options(args, _OF_DIRECTIONS, "a network")
        if source.kind in GENERATORS:
            facts = _checkpoint(args, source, _found([directions.parse(text) for text in args.directions]))
        else:
            _refuse_options(args, ("directions", "encoder", "verify"), "one network alone")
            facts = _tensors(args, source)
    report.result(args, {"input": args.source, "output": str(args.output), "error": None, **facts})
    if not args.quiet and not args.json:
        for name, value in facts.get("verified", {}).items():
            print(f"  {name}: {value:.4g}")
    return report.OK


def _found(requests: list[Request], kind: str | None = None) -> list[tuple[Request, Source]]:
    from faceedit.convert.recognise import recognise

    return [(request, recognise(request.path, kind)) for request in requests]


def _checkpoint(
    args: argparse.Namespace, source: Source, requests: list[tuple[Request, Source]]
) -> dict[str, Any]:
    """Networks to a checkpoint folder."""
    from faceedit.convert import checkpoint
    from faceedit.convert.recognise import recognise

    _require_folder(args)
    encoder = None if args.encoder is None else recognise(args.encoder)
    made = checkpoint.assemble(checkpoint.networks(source, encoder), requests, args.licence)
    return {"format": source.kind, **_save(args, made)}


def _directions(args: argparse.Namespace, requests: list[tuple[Request, Source]]) -> dict[str, Any]:
    """Directions to a file of their own, or to a copy of the checkpoint that they are for."""
    from dataclasses import replace

    from faceedit import hub
    from faceedit.convert import card, checkpoint
    from faceedit.directions import Directions

    folder = hub.resolve(args.generator)
    before, tensors = hub.load_checkpoint(folder)
    generator = checkpoint.generator_of(before, tensors)
    if _is_file(args.output):
        _refuse_options(args, ("verify",), "directions alone")
        bare = replace(before, attributes={}, provenance=[])
        config, vectors = checkpoint.add_directions(bare, {}, requests, generator, args.licence)
        description = {
            "attributes": [
                {"name": name, "aliases": info.aliases, "range": info.range} for name, info in config.attributes.items()
            ],
            "licence": args.licence,
        }
        made = Directions.from_tensors(_stored(args, vectors), description)
        made.save(args.output, source=json.dumps(config.provenance), overwrite=args.overwrite)
        return {"format": requests[0][1].kind}
    config, tensors = checkpoint.add_directions(before, tensors, requests, generator, args.licence)
    names = [name for name in config.attributes if name not in before.attributes]
    readme = folder / hub.CARD_FILE
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    made = checkpoint.Checkpoint(
        config, tensors, card.extend(text, config, names), checkpoint.Networks(generator), tuple(names)
    )
    return {"format": requests[0][1].kind, **_save(args, made)}


def _tensors(args: argparse.Namespace, source: Source) -> dict[str, Any]:
    """One network to a file of its tensors."""
    from safetensors.torch import save

    from faceedit import files
    from faceedit.convert import arcface, mobile_stylegan

    if not _is_file(args.output):
        raise UsageError(
            f"{args.source!r} holds one network that is no checkpoint by itself: the name of {str(args.output)!r} "
            f"must end in {CODE_SUFFIX}."
        )
    if source.kind == "arcface":
        tensors = arcface.arcface(source.content).state_dict()
    else:
        tensors = mobile_stylegan.convert(source.path)
    metadata = {"format": "pt", "source": source.path.name, "sha256": source.sha256, "licence": args.licence}
    with files.write_whole(args.output, args.overwrite) as temporary:
        temporary.write_bytes(save(_stored(args, tensors), metadata))
    return {"format": source.kind}


def _save(args: argparse.Namespace, made: Checkpoint) -> dict[str, Any]:
    """Write the checkpoint, after a look at it if that was asked for."""
    import torch

    from faceedit import hub, images
    from faceedit.convert.verify import verify

    seen = verify(made) if args.verify else None
    folder = hub.save_checkpoint(
        args.output, made.config, made.tensors, made.card, args.overwrite, torch.float16 if args.half else None
    )
    if seen is None:
        return {}
    images.save(seen.grid, folder / _GRID, overwrite=True)
    return {"verified": seen.facts, "grid": str(folder / _GRID)}


def _stored(args: argparse.Namespace, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    kept = {name: tensor.half() if args.half and tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    return {name: tensor.contiguous() for name, tensor in kept.items()}


def _is_file(path: Path) -> bool:
    return path.suffix.lower() == CODE_SUFFIX


def _require_folder(args: argparse.Namespace) -> None:
    if _is_file(args.output):
        raise UsageError(f"These weights become a checkpoint, which is a folder; {str(args.output)!r} names a file.")


def _refuse_occupied(args: argparse.Namespace) -> None:
    """Before the work, which takes a while; whoever writes checks once more."""
    from faceedit import hub

    if _is_file(args.output):
        refuse_existing(args.output, args.overwrite)
    else:
        names = [hub.CONFIG_FILE, hub.TENSOR_FILE, hub.CARD_FILE] + [_GRID] * args.verify
        for name in names:
            refuse_existing(args.output / name, args.overwrite)


def _refuse_options(args: argparse.Namespace, names: tuple[str, ...], what: str) -> None:
    given = [f"--{name}" for name in names if getattr(args, name)]
    if given:
        raise UsageError(f"{args.source!r} is {what}, with which {' and '.join(given)} cannot go. Leave it out.")
