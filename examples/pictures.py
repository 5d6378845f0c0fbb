"""Draw the pictures of the documentation into docs/images, with the default checkpoint.

``python examples/pictures.py``
"""

from pathlib import Path

from PIL import Image, ImageDraw

from faceedit import FaceEditor
from faceedit.cli.sheet import explain
from faceedit.results import Inversion

ROOT = Path(__file__).resolve().parent.parent
SIDE = 256
SHOWN = ("smile", "age", "gender", "glasses", "beard", "mouth_open", "bangs")
LABEL = 22  # pixels below each picture


def sheet(rows: list[list[tuple[str, Image.Image]]], name: str) -> None:
    """Save rows of (label, picture)."""
    height = SIDE + LABEL
    paper = Image.new("RGB", (SIDE * len(rows[0]), height * len(rows)), "white")
    draw = ImageDraw.Draw(paper)
    for j, row in enumerate(rows):
        for i, (label, picture) in enumerate(row):
            small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
            paper.paste(small, (SIDE * i, height * j))
            draw.text((SIDE * i + 6, height * j + SIDE + 5), label, fill="black")
    paper.save(ROOT / "docs" / "images" / name, quality=90)


def main() -> None:
    """Draw all pictures."""
    editor = FaceEditor.from_pretrained()
    photo = Image.open(ROOT / "examples" / "astronaut.png").convert("RGB")
    inversion = editor.invert(photo)
    edits = {name: -1.0 if name == "smile" else 1.0 for name in SHOWN}  # she smiles already
    row = [(f"{name} {s:+g}", editor.edit(inversion, {name: s})) for name, s in edits.items()]
    sheet([[("photograph", photo), *row]], "astronaut_edits.jpg")
    # The same figure that `faceedit edit --explain` draws.
    why = [explain(editor.edit(inversion, {name: 1.0}, explain=True, return_result=True), SIDE) for name in ("beard", "age")]
    paper = Image.new("RGB", (why[0].width, sum(part.height for part in why)))
    for i, part in enumerate(why):
        paper.paste(part, (0, i * part.height))
    paper.save(ROOT / "docs" / "images" / "explained.jpg", quality=90)

    rows = []
    for code in editor.generator.sample(4, truncation=0.7, seed=21):
        # An inversion that is only a code: the generator's picture takes the photograph's place.
        face = Inversion(code)
        row = [("generated", editor.edit(face))]
        rows.append(row + [(f"{name} +1", editor.edit(face, {name: 1.0})) for name in SHOWN])
    sheet(rows, "generated_edits.jpg")


if __name__ == "__main__":
    main()
