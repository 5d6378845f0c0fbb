"""The model card of a converted checkpoint, written from its config."""

from __future__ import annotations

from collections.abc import Sequence

from faceedit.config import ModelConfig

__all__ = ["extend", "write"]

_GENERATORS = {"stylegan2": "StyleGAN2", "mobile_stylegan": "MobileStyleGAN"}
_ENCODERS = {"psp": "pSp", "e4e": "e4e"}


def write(config: ModelConfig) -> str:
    """Markdown for the README.md of a checkpoint.

    Args:
        config: of the checkpoint; what is not in it is not in the card.
    """
    generator = _GENERATORS.get(config.generator.name, config.generator.name)
    encoder = "no encoder" if config.encoder is None else _ENCODERS.get(config.encoder.name, config.encoder.name)
    size = config.generator.resolution
    lines = [
        "---",
        "license: other",
        "library_name: faceedit",
        "pipeline_tag: image-to-image",
        "tags:",
        "- face-editing",
        "- stylegan",
        "---",
        "",
        f"# {generator} {size} px with {encoder}, converted for faceedit",
        "",
        "Made by `faceedit convert` from files that others have published. The weights are theirs and so are the "
        f"terms. Licence of the whole, as stated by who converted it: **{config.licence or 'not stated'}**.",
        "",
        f"The generator takes codes of {config.generator.n_styles} x {config.generator.style_dim}. "
        + (
            "There is no encoder: the checkpoint generates, and cannot find the code of a photograph."
            if config.encoder is None
            else f"The encoder looks at {config.encoder.input_size} px."
        ),
        "",
        "## Made from",
        "",
        "| file | what it is | SHA-256 | used for | licence |",
        "|---|---|---|---|---|",
    ]
    for entry in config.provenance:
        cells = [
            entry.get("file", entry.get("name", "")), entry.get("format", entry.get("note", "")),
            entry.get("sha256", ""), entry.get("used_for", ""), entry.get("licence", ""),
        ]  # fmt: skip
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    lines += ["", "## Attributes", ""]
    if config.attributes:
        lines += ["| name | range | what it is | licence |", "|---|---|---|---|"]
        for name, info in config.attributes.items():
            low, high = info.range
            lines.append(f"| {name} | {low:g} to {high:g} | {_cell(info.description)} | {_cell(info.licence)} |")
    else:
        lines.append("None. `faceedit convert NAME=FILE OUT --generator FOLDER` adds directions.")
    lines += ["", "Nothing was measured on this checkpoint: ranges of added directions are a convention.", ""]
    return "\n".join(lines)


def extend(card: str, config: ModelConfig, names: Sequence[str]) -> str:
    """The card of a checkpoint to which attributes were added.

    Args:
        card: of the checkpoint before.
        config: of the checkpoint now.
        names: the attributes.
    """
    added = [entry for entry in config.provenance if entry.get("used_for") in [f"directions.{name}" for name in names]]
    lines = [card.rstrip(), "", "## Directions added by `faceedit convert`", ""]
    for name, entry in zip(names, added, strict=True):
        lines.append(
            f"- {name}: {_cell(config.attributes[name].description)}. From `{_cell(entry['file'])}`, SHA-256 "
            f"{entry['sha256']}; licence: {_cell(entry.get('licence') or 'not stated')}."
        )
    return "\n".join([*lines, ""])


def _cell(value: object) -> str:
    """Text that cannot leave its cell: parts of it come from names of files."""
    return " ".join(str(value).replace("|", "\\|").replace("`", "'").split())
