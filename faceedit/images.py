"""Any accepted picture in, RGB pixels out, and back to the caller's own type.

`read` turns whatever the caller has into a `Picture`; `restore` puts edited pixels back into the
caller's type; `save` writes a result to a file.

What is accepted, and what comes back from `restore`:

=======================================  ========================================================
given                                    comes back as
=======================================  ========================================================
path, binary file object, bytes          PIL image, by the rules of the next rows
PIL image RGB, RGBA, P, PA, YCbCr, HSV   RGB, or RGBA where the picture has transparency
PIL image L, LA, 1, I;16, I              L, or LA where the picture has transparency; an edit's
                                         colours are turned to grey; 16 bits are scaled to 8
PIL image CMYK                           RGB, through its ICC profile to sRGB where it has one
ndarray (H,W), (H,W,1), (H,W,3), (H,W,4) same shape and dtype: uint8, or float in [0,1]; RGB order
tensor (3,H,W) or (1,3,H,W)              same shape, dtype and device: uint8, or float in [0,1]
=======================================  ========================================================

EXIF orientation is applied first, so all coordinates are those of the upright picture, and the tag
is removed. Alpha channel, ICC profile and the rest of EXIF are kept; pixel values stay in the
picture's own colour profile. Of several frames only a JPEG's first (its others are previews or
depth maps) is taken; any other picture of several frames is refused. Pixels that an edit leaves
alone come back bit-identical, floating point included.
"""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Union

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms

from faceedit import files
from faceedit.errors import ImageError, ImageTooLargeError, UsageError

__all__ = ["ImageSource", "Picture", "read", "read_many", "restore", "save"]

logger = logging.getLogger(__name__)

ImageSource = Union[
    str, "os.PathLike[str]", BinaryIO, bytes, Image.Image, np.ndarray, torch.Tensor
]

MIN_SIDE = 16
"""Pictures with a side shorter than this many pixels are refused."""

MAX_PIXELS = 64 * 1024 * 1024
"""Pictures with more pixels than this are refused, before they are decoded."""

_WRITABLE: dict[str, tuple[str, dict[str, Any]]] = {
    ".jpg": ("JPEG", {"quality": 95}),
    ".jpeg": ("JPEG", {"quality": 95}),
    ".png": ("PNG", {}),
    ".webp": ("WEBP", {"quality": 95}),
    ".tif": ("TIFF", {}),
    ".tiff": ("TIFF", {}),
}

_GREY_MODES = ("1", "L", "LA", "La")
_COLOUR_MODES = ("RGB", "RGBA", "RGBa", "RGBX", "P", "PA", "YCbCr", "HSV")
_WIDE_GREY_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")

# How to turn a picture of each EXIF orientation.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip

# Tags of a TIFF that say what it shows; its others say how the file is laid out.
_OF_TIFF = frozenset({
    ExifTags.Base.ImageDescription, ExifTags.Base.Make, ExifTags.Base.Model, ExifTags.Base.Software,
    ExifTags.Base.DateTime, ExifTags.Base.Artist, ExifTags.Base.Copyright,
})  # fmt: skip

# Floats may leave [0,1] by this much, a quarter of an 8-bit level, without being refused.
_ROUNDING = 1e-3


class _Photograph(Image.Image):
    """A PIL image whose `save` writes what it came with: Pillow's own writes a JPEG without profile and EXIF."""

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As Pillow's, but profile, EXIF and a quality of 95 need not be asked for."""
        suffix = Path(fp).suffix.lower() if isinstance(fp, (str, os.PathLike)) else ""
        name = format or Image.registered_extensions().get(suffix, "")
        kept = {key: self.info[key] for key in ("icc_profile", "exif") if key in self.info}
        super().save(fp, format=format, **{**dict(_WRITABLE.values()).get(name.upper(), {}), **kept, **params})

    def __eq__(self, other: object) -> bool:
        """Pillow's own compares classes first."""
        return self.copy() == (other.copy() if isinstance(other, _Photograph) else other)


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as faceedit works on it, with what is needed to give it back as it came.

    Attributes:
        pixels: uint8 (H,W,3), RGB, upright.
        alpha: uint8 (H,W), or None where the picture has no transparency.
        mode: "L", "LA", "RGB" or "RGBA": what `restore` gives back.
        name: what to call the picture in messages, such as its path.
        original: private copy of the caller's array or tensor; None if a PIL image is given back.
        info: "icc_profile" and "exif" (without orientation) as bytes, each where present.
    """

    pixels: np.ndarray
    alpha: np.ndarray | None
    mode: str
    name: str
    original: np.ndarray | torch.Tensor | None = None
    info: Mapping[str, bytes] = field(default_factory=dict)


def read(source: ImageSource) -> Picture:
    """Read one picture of any accepted kind; the module's docstring lists them.

    Args:
        source: the picture. A file object is read from its current position to its end. Arrays and
            tensors are copied, so that the caller may change them afterwards.

    Returns:
        The picture, upright, with sides from 16 pixels and at most 64 * 1024 * 1024 pixels.

    Raises:
        ImageNotFoundError: nothing lies at the given path.
        ImageTooLargeError: more pixels than the limit; nothing was decoded.
        ImageError: unreadable, truncated, empty, too small, of several frames, or of a dtype,
            shape, range or colour mode that is not accepted.
        UsageError: `source` is none of the accepted kinds.
    """
    if isinstance(source, Image.Image):
        return _from_pil(source, "the PIL image")
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, torch.Tensor):
        return _from_tensor(source)
    if isinstance(source, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(
        source, "read"
    ):
        data, name = files.read_bytes(source)
        with files.decode(data, name) as image:
            return _from_pil(image, name)
    raise UsageError(
        f"A {type(source).__name__} is no picture. Pass a path, a binary file object, bytes, a PIL "
        "image, an RGB ndarray or a tensor (3,H,W)."
    )


def read_many(sources: Iterable[ImageSource]) -> list[Picture]:
    """Read several pictures, in order.

    Args:
        sources: an iterable of accepted pictures, or one batch: tensor (B,3,H,W) or ndarray
            (B,H,W,3). The pictures of a batch come back one by one, as (3,H,W) or (H,W,3).

    Returns:
        One `Picture` for each, as `read` makes it.

    Raises:
        UsageError: `sources` is a single picture, or no iterable.
        ImageError: as `read`; the message says which picture it was, counted from 0.
    """
    batch = isinstance(sources, (np.ndarray, torch.Tensor))
    single = isinstance(sources, (str, bytes, bytearray, memoryview, os.PathLike, Image.Image))
    if single or hasattr(sources, "read") or (batch and sources.ndim != 4):
        raise UsageError("One picture was given where several are expected. Pass a list of them.")
    if not isinstance(sources, Iterable):
        raise UsageError(f"A {type(sources).__name__} is no list of pictures.")
    pictures = []
    for index, source in enumerate(sources):
        try:
            pictures.append(read(source))
        except (ImageError, UsageError) as error:
            raise type(error)(f"Picture {index} of the list: {error}") from error
    return pictures


def restore(picture: Picture, rgb: np.ndarray) -> Image.Image | np.ndarray | torch.Tensor:
    """Give edited pixels back in the type, mode and dtype in which the picture came.

    Args:
        picture: what `read` returned.
        rgb: uint8 (H,W,3), the edited pixels, of the size of `picture.pixels`.

    Returns:
        The caller's type, by the table in the module's docstring. Channels that are equal in `rgb`
        and `picture.pixels` have exactly the value that they came with.

    Raises:
        UsageError: `rgb` has another shape or dtype.
    """
    if rgb.shape != picture.pixels.shape or rgb.dtype != np.uint8:
        raise UsageError(
            f"Edited pixels must be uint8 {picture.pixels.shape} like the picture they belong to, "
            f"not {rgb.dtype} {rgb.shape}."
        )
    if isinstance(picture.original, torch.Tensor):
        return _to_tensor(picture, picture.original, rgb)
    if isinstance(picture.original, np.ndarray):
        return _to_array(picture, picture.original, rgb)
    return _make_pil(rgb, picture.alpha, picture.mode, picture.info)


def save(image: ImageSource, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write a picture to a file whose suffix names the format.

    JPEG and WebP are written at quality 95, PNG and TIFF without loss. ICC profile and EXIF are
    kept, orientation applied. The file appears whole or not at all.

    Args:
        image: any accepted picture.
        path: ends in .jpg, .jpeg, .png, .webp, .tif or .tiff; its folder exists.
        overwrite: replace a file that is already there.

    Returns:
        The path written.

    Raises:
        OutputExistsError: something is at `path` and `overwrite` is false.
        UsageError: the suffix is unknown or the folder does not exist.
        ImageError: `image` cannot be read (see `read`), is too large for the format, or has
            transparent pixels that JPEG cannot hold (an alpha channel without any is dropped).
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITABLE:
        raise UsageError(
            f"Cannot tell the format of {str(path)!r}: end it in one of {', '.join(_WRITABLE)}."
        )
    format_name, options = _WRITABLE[path.suffix.lower()]
    picture = read(image)
    alpha = picture.alpha
    if alpha is not None and format_name == "JPEG":
        if not (alpha == 255).all():
            raise ImageError(
                f"The picture has transparent pixels and {str(path)!r} is a JPEG, which cannot "
                "hold them. Save as .png or .webp, or lay it on a background first."
            )
        alpha = None
    pil = _make_pil(picture.pixels, alpha, picture.mode, picture.info)
    with files.write_whole(path, overwrite) as temporary:
        try:
            pil.save(temporary, format=format_name, **options, **picture.info)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the picture
            raise ImageError(
                f"A {pil.width}x{pil.height} {pil.mode} picture cannot be written as {format_name} "
                f"({error}). Save in another format, such as .png."
            ) from error
    return path


def _from_pil(image: Image.Image, name: str) -> Picture:
    _check_size(image.width, image.height, name)
    try:
        frames = getattr(image, "n_frames", 1)
        image.load()
    except Exception as error:
        raise ImageError(
            f"Damaged: {name} breaks off or cannot be decoded ({error}). Get a whole copy of it."
        ) from error
    # An MPO is a JPEG with previews or depth maps behind it: phones write it for plain photographs.
    if frames > 1 and getattr(image, "format", None) != "MPO":
        raise ImageError(
            f"Animated or of several pages: {name} has {frames} frames. Pass one of them: open it "
            "with PIL, call image.seek(n) and pass image.copy()."
        )
    profile = image.info.get("icc_profile")
    info = {"icc_profile": profile} if profile else {}
    image, exif = _upright(image, name)
    if exif:
        info["exif"] = exif

    if image.mode in _WIDE_GREY_MODES:
        image = _to_8_bit(image, name)
    elif image.mode == "CMYK":
        image = _cmyk_to_rgb(image, info.pop("icc_profile", None), name)
    elif image.mode in (*_GREY_MODES, *_COLOUR_MODES):
        mode = "L" if image.mode in _GREY_MODES else "RGB"
        mode += "A" if image.has_transparency_data else ""
        if image.mode != mode:  # converting to the same mode would copy the pixels
            image = image.convert(mode)
    else:
        raise ImageError(
            f"Pictures of mode {image.mode} are not accepted ({name}). Convert it with "
            "image.convert('RGB') first."
        )
    values, alpha = np.array(image), None
    if image.mode.endswith("A"):
        values, alpha = values[..., :-1].copy(), values[..., -1].copy()
    if image.mode.startswith("L"):
        values = _grey_to_rgb(values.reshape(values.shape[:2]))
    return Picture(values, alpha, image.mode, name, info=info)


def _upright(image: Image.Image, name: str) -> tuple[Image.Image, bytes]:
    """The picture turned as its EXIF says, and what EXIF says besides, as far as it can be read."""
    turn, kept = None, b""
    try:
        exif = image.getexif()
        if image.info.get("exif") and not len(exif):
            raise ValueError("no tag of its EXIF")
        turn = _TURNS.get(exif.get(ExifTags.Base.Orientation))
        kept = _besides_orientation(exif, only=_OF_TIFF if getattr(image, "format", None) == "TIFF" else None)
    except Exception as error:
        # EXIF is often written badly; a picture is not worth refusing for it.
        logger.warning("ignored metadata of %s that cannot be read: %s", name, error)
    return image if turn is None else image.transpose(turn), kept


def _besides_orientation(exif: Image.Exif, only: Collection[int] | None) -> bytes:
    """EXIF without the orientation, which the pixels have, and without the thumbnail, which shows the unedited face."""
    kept = Image.Exif()
    for tag, value in exif.items():
        if tag != ExifTags.Base.Orientation and (only is None or tag in only):
            kept[tag] = value
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if inner := dict(exif.get_ifd(tag)):
            if ExifTags.IFD.Interop in inner:
                inner[ExifTags.IFD.Interop] = exif.get_ifd(ExifTags.IFD.Interop)
            kept[tag] = inner
    return kept.tobytes() if len(kept) else b""


def _to_8_bit(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 65535:
        raise ImageError(
            f"{name} has grey values from {values.min()} to {values.max()}, which is neither 8 nor "
            "16 bits. Scale it to 0..255 first."
        )
    return Image.fromarray(np.rint(values / 257.0).astype(np.uint8))


def _cmyk_to_rgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    if profile:
        try:
            return ImageCms.profileToProfile(
                image,
                ImageCms.ImageCmsProfile(io.BytesIO(profile)),
                ImageCms.createProfile("sRGB"),
                outputMode="RGB",
            )
        except (ImageCms.PyCMSError, OSError) as error:
            logger.warning("ignored the unusable ICC profile of %s: %s", name, error)
    return image.convert("RGB")


def _from_array(array: np.ndarray) -> Picture:
    name = "the array"
    shape = array.shape
    channels = shape[2] if array.ndim == 3 else 1
    if array.ndim not in (2, 3) or channels not in (1, 3, 4):
        advice = "Pass (H,W), (H,W,1), (H,W,3) or (H,W,4)."
        if array.ndim == 3 and shape[0] in (1, 3, 4):
            advice += " Channels seem to come first here: array.transpose(1, 2, 0) puts them last."
        elif array.ndim == 4:
            advice += " Several pictures at once go to edit_batch."
        raise ImageError(f"An array of shape {shape} is no picture. {advice}")
    _check_size(shape[1], shape[0], name)
    if array.dtype != np.uint8 and not np.issubdtype(array.dtype, np.floating):
        raise ImageError(
            f"An array of dtype {array.dtype} is not accepted. Pass uint8 in 0..255 or floats in "
            "[0,1]."
        )
    original = np.array(array, order="C")
    values = original
    if array.dtype != np.uint8:
        _check_range(float(array.min()), float(array.max()), name)
        values = _floats_to_8_bit(array.astype(np.float32))
    if channels == 1:
        return Picture(_grey_to_rgb(values.reshape(shape[:2])), None, "L", name, original)
    alpha = values[..., 3].copy() if channels == 4 else None
    pixels = np.ascontiguousarray(values[..., :3])
    return Picture(pixels, alpha, "RGB" if alpha is None else "RGBA", name, original)


def _from_tensor(tensor: torch.Tensor) -> Picture:
    name = "the tensor"
    shape = tuple(tensor.shape)
    if len(shape) not in (3, 4) or shape[-3] != 3 or (len(shape) == 4 and shape[0] != 1):
        advice = "Pass (3,H,W) or (1,3,H,W)."
        if shape[-1:] in ((3,), (4,)):
            advice += " Channels seem to come last here: tensor.permute(2, 0, 1) puts them first."
        elif len(shape) == 4 and shape[1] == 3:
            advice += " Several pictures at once go to edit_batch."
        raise ImageError(f"A tensor of shape {shape} is no picture. {advice}")
    _check_size(shape[-1], shape[-2], name)
    if tensor.dtype != torch.uint8 and not tensor.is_floating_point():
        raise ImageError(
            f"A tensor of dtype {tensor.dtype} is not accepted. Pass uint8 in 0..255 or floats in "
            "[0,1]."
        )
    original = tensor.detach().clone()
    planes = original.reshape(shape[-3:]).permute(1, 2, 0).cpu()
    if tensor.dtype == torch.uint8:
        values = planes.numpy()
    else:
        planes = planes.float()
        _check_range(float(planes.min()), float(planes.max()), name)
        values = _floats_to_8_bit(planes.numpy())
    return Picture(np.array(values, order="C"), None, "RGB", name, original)


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageTooLargeError(
            f"Too many pixels: {name} is {width}x{height}, {width * height / 1e6:.0f} megapixels, "
            f"and the limit is {MAX_PIXELS / 1e6:.0f}. Scale it down first."
        )
    if min(width, height) < MIN_SIDE:
        raise ImageError(
            f"Too small: {name} is {width}x{height} pixels, and each side must have at least "
            f"{MIN_SIDE}."
        )


def _check_range(low: float, high: float, name: str) -> None:
    # A NaN anywhere makes both ends NaN.
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"There are NaN or infinite values in {name}; replace them first.")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        advice = "If it is scaled to [-1,1], pass (x + 1) / 2." if low < 0 else "Divide it by 255."
        raise ImageError(
            f"Floats must be in [0,1], and {name} has values from {low:.4g} to {high:.4g}. {advice}"
        )


def _floats_to_8_bit(values: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.stack([grey, grey, grey], axis=-1)


def _rgb_to_grey(rgb: np.ndarray) -> np.ndarray:
    # Pillow's luma weights add up to exactly 1: pixels that were left grey keep their value.
    return np.asarray(Image.fromarray(rgb).convert("L"))


def _make_pil(
    rgb: np.ndarray, alpha: np.ndarray | None, mode: str, info: Mapping[str, bytes]
) -> Image.Image:
    image = Image.fromarray(rgb)
    if mode in ("L", "LA"):
        image = image.convert("L")
    if alpha is not None:
        image.putalpha(Image.fromarray(alpha))
    image.info.update(info)
    image.__class__ = _Photograph  # Pillow has no way to make an instance of a subclass
    return image


def _to_array(picture: Picture, original: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    before, after = picture.pixels, rgb
    result = original.copy()
    target = result[..., :3] if result.ndim == 3 else result
    if picture.mode == "L":
        before, after = before[..., 0], _rgb_to_grey(rgb)
        target = result.reshape(before.shape)  # a view, for the copy is contiguous
    values = after if result.dtype == np.uint8 else after.astype(result.dtype) / 255
    np.copyto(target, values, where=after != before)
    return result


def _to_tensor(picture: Picture, original: torch.Tensor, rgb: np.ndarray) -> torch.Tensor:
    after = torch.tensor(rgb).permute(2, 0, 1).to(original.device)
    changed = torch.tensor(rgb != picture.pixels).permute(2, 0, 1).to(original.device)
    values = after if original.dtype == torch.uint8 else (after.float() / 255).to(original.dtype)
    planes = original.reshape(after.shape)
    return torch.where(changed, values, planes).reshape(original.shape)
