"""Pictures to train on: folders of known layouts in, aligned faces of one size out, made once and kept.

A `Folder` knows which pictures it holds and how the crop frame of each is found: FFHQ and CelebA-HQ
pictures are the frame, CelebA's have it at a fixed place, and in a photograph the face is looked for,
as the editor does. :func:`load_faces` cuts the crops and keeps them in an ``.npy`` file, with a
``.json`` beside it that says what they were made from. A kept file is used only if that is still so.
"""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from faceedit import hub
from faceedit.crop import CropFrame, extract
from faceedit.errors import DataError, FaceEditError
from faceedit.faces import Box, find
from faceedit.images import read
from faceedit.models.frame_net import FrameNet
from faceedit.train import processes
from faceedit.train.labels import Labels, read_labels
from faceedit.train.views import CELEBA_SIZE, CELEBA_WINDOW

log = logging.getLogger(__name__)

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
# Parts of a known layout, first match wins: folder of the pictures, label files, how frames are found.
_LAYOUTS = (
    ("FFHQ", "images1024x1024", (), "whole"),
    ("FFHQ", "thumbnails128x128", (), "whole"),
    ("CelebA-HQ", "CelebA-HQ-img", ("CelebAMask-HQ-attribute-anno.txt",), "whole"),
    ("CelebA-HQ", "celeba_hq", (), "whole"),
    ("CelebA", "img_align_celeba", ("list_attr_celeba.txt", "Anno/list_attr_celeba.txt"), "celeba"),
    ("CelebA", "images", ("attributes.csv", "list_attr_celeba.txt"), "celeba"),
)
_VERSION = 1  # of how crops are cut; a kept file of another is made anew


class Framer(Protocol):
    """Finds crop frames in photographs.

    Attributes:
        key: Says which framer it is: crops are cut anew when it changes.
    """

    key: str

    def __call__(self, pixels: NDArray[np.uint8], box: Box | None) -> CropFrame:
        """The frame in ``(H, W, 3)`` of the face in this box; of the largest that is found, if None."""


class Sieve(Protocol):
    """Says which crops are not to be trained on.

    Attributes:
        key: Says which sieve it is: crops are cut anew when it changes.
    """

    key: str

    def __call__(self, crop: NDArray[np.uint8]) -> str | None:
        """Why this crop ``(S, S, 3)``, margin included, is left out; None if it is kept."""


@dataclass(frozen=True)
class Folder:
    """A folder of pictures whose layout was recognised.

    Attributes:
        layout: Its name, for messages.
        root: Folder that the names start from.
        names: Of the pictures, with subfolders, sorted.
        frame: "whole", "celeba" or "find": where the crop frame of a picture is.
        boxes: Face boxes (x0, y0, x1, y1) by name, where an ``index.csv`` gives them.
        label_file: Of the attributes, or None.
    """

    layout: str
    root: Path
    names: tuple[str, ...]
    frame: str
    boxes: Mapping[str, Box] = field(default_factory=dict)
    label_file: Path | None = None

    @cached_property
    def labels(self) -> Labels:
        """The attributes of its pictures (DataError where it has none)."""
        if self.label_file is None:
            raise DataError(f"{str(self.root)!r} has no label file. Put attributes.csv or list_attr_celeba.txt beside it.")
        return read_labels(self.label_file)


def open_folder(path: str | Path, aligned: bool | None = None) -> Folder:
    """Recognise a folder of pictures.

    FFHQ: ``images1024x1024/``, ``thumbnails128x128/`` or folders of a thousand, ``00000/00000.png``.
    CelebA-HQ: ``CelebA-HQ-img/`` (CelebAMask-HQ, with its labels) or ``celeba_hq/train/female/``.
    CelebA: ``img_align_celeba/`` or ``images/`` with a label file; pictures there that are not of its
    size are photographs with labels. Else photographs: those that an ``index.csv`` lists (columns
    ``file`` and ``face_box``; in ``images/`` or beside it), or all pictures in the folder and below.

    Args:
        path: The folder.
        aligned: Whether the pictures are FFHQ crops already; None to go by the layout.

    Raises:
        DataError: There is no folder or no picture in it.
    """
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"There is no folder {str(path)!r}. Pass the folder of the pictures.")
    name, root, frame, boxes, label_file = "pictures", path, "find", {}, None
    if (path / "index.csv").is_file():
        name, boxes = "photographs with an index", _read_index(path / "index.csv")
        root = path / "images" if (path / "images").is_dir() else path
        names: Sequence[str] = [*boxes]
    else:
        for layout, below, files, how in _LAYOUTS:
            labels = [path / file for file in files if (path / file).is_file()]
            if (path / below).is_dir() and (labels or below != "images"):
                name, root, frame, label_file = layout, path / below, how, next(iter(labels), None)
                break
        names = _pictures(root)
        if frame == "celeba" and names and not _is_celeba(root / names[0]):
            name, frame = "labelled photographs", "find"
        if name == "pictures" and names and all(len(part := Path(n).parts) == 2 and _thousand(*part) for n in names):
            name, frame = "FFHQ", "whole"
    if not names:
        raise DataError(f"No picture ({', '.join(sorted(SUFFIXES))}) lies in {str(root)!r} or below.")
    if aligned is not None:
        frame = "whole" if aligned else "find"
    return Folder(name, root, tuple(names), frame, boxes, label_file)


def _pictures(root: Path) -> list[str]:
    return sorted(p.relative_to(root).as_posix() for p in root.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def _thousand(folder: str, file: str) -> bool:
    """Whether these are FFHQ's, as in 01000/01234.png."""
    stem = Path(file).stem
    return len(folder) == 5 == len(stem) and folder.isdigit() and stem.isdigit() and int(stem) // 1000 * 1000 == int(folder)


def _is_celeba(path: Path) -> bool:
    """Whether a picture has the size of CelebA's aligned ones, or can have had it before it was damaged."""
    try:
        height, width = read(path).pixels.shape[:2]
    except FaceEditError:
        return True
    return _celeba_scale(width, height) is not None


def _read_index(path: Path) -> dict[str, Box]:
    with open(path, newline="", encoding="utf-8") as file:
        try:
            return {row["file"]: tuple(map(float, row["face_box"].split())) for row in csv.DictReader(file)}
        except (KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"{str(path)!r} needs the columns file and face_box, the latter four numbers x0 y0 x1 y1 ({error!r})."
            ) from error


# --- frames -----------------------------------------------------------------------------------


class NetFramer:
    """The crop frame by a frame net, of the given face or else the largest that is found.

    Args:
        net: In evaluation mode; None for that of the packaged checkpoint.
    """

    def __init__(self, net: FrameNet | None = None) -> None:
        if net is None:
            config, tensors = hub.load_checkpoint(hub.resolve(None))
            net = FrameNet(**(config.crop.frame_net or {}))
            hub.load_module(net, tensors, "frame_net")
        self.net = net.float().eval()
        self.key = f"frame net {digest(self.net.state_dict().values())}"

    def __call__(self, pixels: NDArray[np.uint8], box: Box | None) -> CropFrame:
        return CropFrame(*self.net.predict(pixels, box or find(pixels)[0].box))


def celeba_frame(width: int, height: int) -> CropFrame:
    """Where the FFHQ crop lies in an aligned CelebA picture, 178x218 or smaller."""
    left, top, side = CELEBA_WINDOW
    scale = _celeba_scale(width, height)
    if scale is None:
        raise DataError(f"an aligned CelebA picture is 178x218 or in that proportion, not {width}x{height}")
    return CropFrame(((left + side / 2) * scale, (top + side / 2) * scale), (side / 2 * scale, 0.0))


def _celeba_scale(width: int, height: int) -> float | None:
    scale = width / CELEBA_SIZE[0]
    return scale if abs(height - CELEBA_SIZE[1] * scale) <= 1 else None


# --- faces ------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Faces:
    """Aligned faces of one size.

    Attributes:
        pictures: ``(N, S, S, 3)`` uint8, mapped from disk.
        names: Of the pictures, with their subfolders; N of them.
        skipped: Name -> why it was left out.
    """

    pictures: NDArray[np.uint8]
    names: tuple[str, ...]
    skipped: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.pictures)


def load_faces(
    source: str | Path | Folder, keep: str | Path, *, size: int, margin: float = 1.0, aligned: bool | None = None,
    framer: Framer | None = None, sieve: Sieve | None = None,
) -> Faces:  # fmt: skip
    """Aligned crops of the pictures in a folder, cut at the first call and kept.

    Pictures that cannot be read or have no face are reported once and left out.

    Args:
        source: Folder as :func:`open_folder` knows them, or what it gave; or an ``.npy`` file of crops.
        keep: ``.npy`` file for the crops.
        size: Side of a crop in pixels, margin included.
        margin: Side of a crop in sides of its frame: above 1, training can move the frame.
        aligned: As for :func:`open_folder`.
        framer: Finds frames in photographs; None for the packaged frame net.
        sieve: Says which crops are left out; None keeps all.

    Raises:
        DataError: No picture could be used.
    """
    if str(source).endswith(".npy"):
        return open_faces(source)
    folder = source if isinstance(source, Folder) else open_folder(source, aligned)
    if folder.frame == "find" and framer is None:
        framer = NetFramer()
    state = [(name, *_stat(folder.root / name), folder.boxes.get(name)) for name in folder.names]
    key = {
        "version": _VERSION, "size": size, "margin": margin, "frame": folder.frame if framer is None else framer.key,
        "pictures": hashlib.blake2b(json.dumps(state).encode(), digest_size=8).hexdigest(),
        **({} if sieve is None else {"sieve": sieve.key}),
    }  # fmt: skip

    def crops() -> Iterator[tuple[str, NDArray[np.uint8] | str]]:
        for name in tqdm(folder.names, desc=f"crops of {folder.layout}", mininterval=5, disable=processes.rank() > 0):
            try:
                crop = _crop(folder, name, framer, size, margin)
                yield name, (sieve and sieve(crop)) or crop
            except (FaceEditError, ValueError, OSError) as error:
                yield name, str(error)

    return kept(keep, key, (size, size, 3), crops)


def _crop(folder: Folder, name: str, framer: Framer | None, size: int, margin: float) -> NDArray[np.uint8]:
    pixels = read(folder.root / name).pixels
    height, width = pixels.shape[:2]
    if folder.frame == "find":
        frame = framer(pixels, folder.boxes.get(name))
    else:
        frame = CropFrame.whole(width, height) if folder.frame == "whole" else celeba_frame(width, height)
    x, y = frame.x_axis
    crop = extract(pixels, CropFrame(frame.center, (margin * x, margin * y)), size)
    return (crop * 255).round().byte().permute(1, 2, 0).numpy()


def _stat(path: Path) -> tuple[int, int]:
    try:
        stat = path.stat()
    except OSError:
        return 0, 0  # reported when it is read
    return stat.st_size, stat.st_mtime_ns


# --- what is kept on disk ---------------------------------------------------------------------


def kept(
    path: str | Path, key: Mapping[str, Any], shape: tuple[int, ...],
    rows: Callable[[], Iterable[tuple[str, NDArray[np.uint8] | str]]],
) -> Faces:  # fmt: skip
    """What lies in a file if it was made from this key; otherwise made, row by row, and kept there.

    The file counts only with its ``.json``, which is written last: one that is half written is not used.

    Args:
        path: ``.npy`` file.
        key: JSON values that say what the rows are made from.
        shape: Of a row.
        rows: Gives each row with its name; in place of a row, a sentence why there is none.

    Raises:
        DataError: There is not a single row.
    """
    path = Path(path).with_suffix(".npy")
    note = path.with_suffix(".json")
    with processes.first_alone():
        if _noted(note).get("key") != dict(key) or not path.exists():
            note.unlink(missing_ok=True)
            names, skipped = _write_rows(path, shape, rows())
            for name, why in skipped.items():
                log.warning("skipped %s: %s", name, why)
            if skipped:
                log.warning("%d of %d pictures were skipped", len(skipped), len(skipped) + len(names))
            if not names:
                first = next(iter(skipped.items()), ("nothing", "there are none"))
                raise DataError(f"None of the {len(skipped)} pictures can be used. {first[0]}: {first[1]}")
            partial = note.with_name(note.name + ".partial")
            partial.write_text(json.dumps({"key": dict(key), "names": names, "skipped": skipped}))
            os.replace(partial, note)
    return open_faces(path)


def open_faces(path: str | Path) -> Faces:
    """Map a file of faces ``(N, S, S, 3)`` uint8; names come from the ``.json`` beside it, if it is there.

    Raises:
        DataError: It is no such file.
    """
    path = Path(path)
    try:
        pictures = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{str(path)!r} is no readable file of faces ({error}). Make it with the crops stage.") from error
    if pictures.ndim != 4 or pictures.shape[3] != 3 or pictures.dtype != np.uint8:
        raise DataError(f"{str(path)!r} holds {pictures.dtype} {pictures.shape}, not faces (N, S, S, 3) uint8.")
    note = _noted(path.with_suffix(".json"))
    names = tuple(note.get("names", ())) or tuple(f"{i:05d}" for i in range(len(pictures)))
    return Faces(pictures, names, note.get("skipped", {}))


def digest(tensors: Iterable[Tensor]) -> str:
    """A short name for the exact values of some tensors."""
    found = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _noted(note: Path) -> dict[str, Any]:
    try:
        return json.loads(note.read_text())
    except (OSError, ValueError):
        return {}


def _write_rows(
    path: Path, shape: tuple[int, ...], rows: Iterable[tuple[str, NDArray[np.uint8] | str]]
) -> tuple[list[str], dict[str, str]]:
    """Stream rows into an .npy file, whose number is known only at the end."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    names: list[str] = []
    skipped: dict[str, str] = {}
    with open(partial, "wb") as file:
        start = _write_header(file, (0, *shape))
        for name, row in rows:
            if isinstance(row, str):
                skipped[name] = row
                continue
            if row.shape != shape or row.dtype != np.uint8:
                raise ValueError(f"row {name}: {row.dtype} {row.shape} instead of uint8 {shape}")
            file.write(row.tobytes())
            names.append(name)
        file.seek(0)
        assert _write_header(file, (len(names), *shape)) == start  # numpy leaves room for the number to grow
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return names, skipped


def _write_header(file: BinaryIO, shape: tuple[int, ...]) -> int:
    npy.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.tell()
