"""Edit the bundled photograph and lay before and after side by side.

``python examples/demo.py`` writes ``examples/output/before_after.png``. The photograph is NASA's
portrait of Eileen Collins, in the public domain.
"""

from pathlib import Path

from PIL import Image

from faceedit import FaceEditor

HERE = Path(__file__).resolve().parent


def main() -> None:
    """Edit one photograph."""
    editor = FaceEditor.from_pretrained()
    before = Image.open(HERE / "astronaut.png")
    after = editor.edit(before, smile=-1.0, glasses=1.0)

    pair = Image.new("RGB", (2 * before.width, before.height))
    pair.paste(before, (0, 0))
    pair.paste(after, (before.width, 0))
    output = HERE / "output" / "before_after.png"
    output.parent.mkdir(exist_ok=True)
    pair.save(output)
    print(f"wrote {output}")


if __name__ == "__main__":
    main()
