"""Every accepted kind of picture goes in and comes back as itself; the rest is refused by name."""

import io
import logging
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from faceedit import files, images
from faceedit.errors import (
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    OutputExistsError,
    UsageError,
)

WIDTH, HEIGHT = 40, 24
ORIENTATION = 0x0112
MAKER = 0x010F


@pytest.fixture
def rgb():
    """uint8 (24,40,3) without any symmetry."""
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def encode(image, format_name="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def reopen(path):
    return Image.open(io.BytesIO(path.read_bytes()))


def edited(picture):
    """The picture's pixels with one patch of 4x6 pixels made (10, 200, 30)."""
    result = picture.pixels.copy()
    result[2:6, 3:9] = (10, 200, 30)
    return result


def outside_patch(array):
    """All pixels of an (H,W,...) array but those of the patch of `edited`."""
    keep = np.ones(array.shape[:2], bool)
    keep[2:6, 3:9] = False
    return array[keep]


# Sources that are files


@pytest.mark.parametrize("kind", ["str", "path", "bytes", "file", "bytesio"])
def test_encoded_sources_give_their_pixels_and_come_back_as_pil(kind, rgb, tmp_path):
    data = encode(Image.fromarray(rgb))
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    if kind == "file":
        with open(path, "rb") as source:
            picture = images.read(source)
    else:
        sources = {"str": str(path), "path": path, "bytes": data, "bytesio": io.BytesIO(data)}
        picture = images.read(sources[kind])
    assert picture.pixels.dtype == np.uint8
    np.testing.assert_array_equal(picture.pixels, rgb)
    back = images.restore(picture, edited(picture))
    assert isinstance(back, Image.Image) and back.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(back), edited(picture))


def test_a_file_object_is_read_from_where_it_stands(rgb):
    source = io.BytesIO(b"header" + encode(Image.fromarray(rgb)))
    source.seek(6)
    np.testing.assert_array_equal(images.read(source).pixels, rgb)
    with pytest.raises(ImageError, match=r"0 bytes.*seek\(0\)"):
        images.read(source)


def test_a_text_file_object_is_refused(tmp_path):
    path = tmp_path / "photo.png"
    path.write_text("text")
    with open(path) as source, pytest.raises(UsageError, match="'rb'"):
        images.read(source)


def test_a_picture_opened_as_text_is_refused(rgb, tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_bytes(encode(Image.fromarray(rgb), "JPEG"))
    with open(path, encoding="utf-8") as source, pytest.raises(UsageError, match="'rb'"):
        images.read(source)


def test_a_missing_file_is_both_an_image_error_and_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.jpg") as caught:
        images.read(tmp_path / "nothing.jpg")
    assert isinstance(caught.value, ImageNotFoundError)
    assert isinstance(caught.value, ImageError)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ImageError, match="is a folder"):
        images.read(tmp_path)


@pytest.mark.parametrize("address", ["http://example.org/a.jpg", "HTTPS://example.org/a.jpg"])
def test_a_web_address_is_refused(address):
    with pytest.raises(ImageError, match="downloads no pictures"):
        images.read(address)


@pytest.mark.parametrize("source", [None, 3, ["photo.jpg"]])
def test_what_is_no_picture_at_all_is_refused(source):
    with pytest.raises(UsageError, match=f"{type(source).__name__} is no picture"):
        images.read(source)


def test_empty_and_foreign_files_are_refused(tmp_path):
    empty = tmp_path / "empty.jpg"
    empty.touch()
    with pytest.raises(ImageError, match="empty.jpg' holds 0 bytes"):
        images.read(empty)
    with pytest.raises(ImageError, match="Not a readable picture"):
        images.read(b"this is not a picture, whatever its name says")


@pytest.mark.parametrize("format_name", ["PCX", "TGA", "EPS"])
def test_formats_that_photographs_do_not_come_in_are_refused(format_name, rgb):
    data = encode(Image.fromarray(rgb), format_name)
    Image.open(io.BytesIO(data))
    with pytest.raises(ImageError, match="none of the formats JPEG"):
        images.read(data)


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "TIFF", "GIF"])
def test_truncated_files_are_refused_wherever_they_break_off(format_name, rgb):
    data = encode(Image.fromarray(rgb), format_name)
    for part in (0.1, 0.5, 0.9):
        with pytest.raises(ImageError):
            images.read(data[: int(len(data) * part)])


def png_header(width, height):
    """A PNG that claims a size and has no pixels."""

    def chunk(kind, body):
        checksum = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + checksum

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8193, 10_000, 100_000])
def test_huge_files_are_refused_before_they_are_decoded(side):
    # There is nothing to decode: an error about damage would mean that it was tried.
    with pytest.raises(ImageTooLargeError, match="Too many pixels.*Scale it down"):
        images.read(png_header(side, side))


def test_huge_arrays_and_tensors_are_refused():
    with pytest.raises(ImageTooLargeError, match="100000x1000"):
        images.read(np.broadcast_to(np.uint8(0), (1000, 100_000, 3)))
    with pytest.raises(ImageTooLargeError, match="1000x100000"):
        images.read(torch.zeros(1, dtype=torch.uint8).expand(3, 100_000, 1000))


@pytest.mark.parametrize("shape", [(15, 40), (40, 15)])
def test_tiny_pictures_are_refused(shape):
    with pytest.raises(ImageError, match=f"{shape[1]}x{shape[0]} pixels.*at least 16"):
        images.read(Image.new("RGB", shape[::-1]))
    assert images.read(Image.new("RGB", (16, 16))).pixels.shape == (16, 16, 3)


@pytest.mark.parametrize("format_name", ["GIF", "PNG", "WEBP", "TIFF"])
def test_pictures_of_several_frames_are_refused_and_one_frame_is_taken(format_name, rgb):
    other = Image.fromarray(255 - rgb)
    data = encode(Image.fromarray(rgb), format_name, save_all=True, append_images=[other])
    with pytest.raises(ImageError, match=r"2 frames.*image\.copy\(\)"):
        images.read(data)
    opened = Image.open(io.BytesIO(data))
    with pytest.raises(ImageError, match="2 frames"):
        images.read(opened)
    opened.seek(1)
    frame = opened.convert("RGB")
    np.testing.assert_array_equal(images.read(frame).pixels, np.asarray(frame))


def test_a_telephone_jpeg_with_a_second_picture_behind_it_gives_the_first(rgb):
    first = Image.fromarray(rgb)
    preview = Image.fromarray(255 - rgb)
    data = encode(first, "MPO", save_all=True, append_images=[preview], quality=100, subsampling=0)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    difference = images.read(data).pixels.astype(int) - rgb
    assert np.abs(difference).mean() < 3


# Orientation and metadata


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_and_removed(orientation, rgb):
    stored_from_upright = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, -1),
    }
    stored = np.ascontiguousarray(stored_from_upright[orientation](rgb))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[MAKER] = "maker"
    data = encode(Image.fromarray(stored), "PNG", exif=exif)
    opened = Image.open(io.BytesIO(data))
    for source in (data, opened):
        picture = images.read(source)
        np.testing.assert_array_equal(picture.pixels, rgb)
        back = images.restore(picture, picture.pixels)
        assert dict(back.getexif()) == {MAKER: "maker"}
    assert opened.getexif()[ORIENTATION] == orientation  # the caller's own is left as it was
    assert opened.size == stored.shape[1::-1]


def test_the_thumbnail_of_the_unedited_face_is_left_out(rgb):
    # Written by hand: Pillow writes no thumbnails.
    thumbnail = encode(Image.fromarray(rgb), "JPEG")
    first = struct.pack("<H", 1) + struct.pack("<HHI4s", MAKER, 2, 4, b"abc\0")
    second_at = 8 + len(first) + 4
    thumbnail_at = second_at + 2 + 2 * 12 + 4
    second = struct.pack("<H", 2) + struct.pack("<HHII", 0x0201, 4, 1, thumbnail_at)
    second += struct.pack("<HHII", 0x0202, 4, 1, len(thumbnail)) + struct.pack("<I", 0)
    exif = b"Exif\0\0II*\0" + struct.pack("<I", 8) + first + struct.pack("<I", second_at)
    data = encode(Image.fromarray(rgb), "JPEG", exif=exif + second + thumbnail)
    assert data.count(thumbnail) == 1

    kept = images.read(data).info["exif"]
    assert b"abc" in kept
    assert thumbnail[:20] not in kept


def test_broken_exif_does_not_cost_the_picture(rgb, caplog):
    data = encode(Image.fromarray(rgb), "JPEG", exif=b"Exif\0\0garbage, garbage")
    with caplog.at_level(logging.WARNING, logger="faceedit"):
        picture = images.read(data)
    assert picture.pixels.shape == rgb.shape
    assert "exif" not in picture.info
    assert "ignored metadata" in caplog.text


def test_a_badly_written_tag_costs_neither_the_orientation_nor_the_profile(rgb, caplog):
    orientation = struct.pack("<HHIHH", ORIENTATION, 3, 1, 6, 0)
    resolution_as_text = struct.pack("<HHI4s", 0x011A, 2, 4, b"high")
    tags = b"II*\0" + struct.pack("<IH", 8, 2) + orientation + resolution_as_text + bytes(4)
    data = encode(Image.fromarray(rgb), "PNG", exif=b"Exif\0\0" + tags, icc_profile=b"a profile")
    with caplog.at_level(logging.WARNING, logger="faceedit"):
        picture = images.read(data)
    np.testing.assert_array_equal(picture.pixels, np.rot90(rgb, -1))
    assert picture.info == {"icc_profile": b"a profile"}
    assert "ignored metadata" in caplog.text


def test_what_a_tiff_says_of_its_picture_is_kept_and_not_how_it_is_stored(rgb):
    exif = Image.Exif()
    exif[ORIENTATION], exif[MAKER], exif[0x8298] = 3, "maker", "nobody"
    exif[0x8769] = {0x9003: "2020:02:02 02:02:02"}
    data = encode(Image.fromarray(rgb), "TIFF", exif=exif.tobytes())
    picture = images.read(data)
    np.testing.assert_array_equal(picture.pixels, rgb[::-1, ::-1])
    kept = Image.Exif()
    kept.load(picture.info["exif"])
    again = Image.open(io.BytesIO(encode(images.restore(picture, picture.pixels), "TIFF"))).getexif()
    assert set(kept) == {MAKER, 0x8298, 0x8769}
    for read in (kept, again):
        assert read[0x8298] == "nobody" and read.get_ifd(0x8769) == {0x9003: "2020:02:02 02:02:02"}


def test_the_icc_profile_is_kept(rgb):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    picture = images.read(encode(Image.fromarray(rgb), "PNG", icc_profile=profile))
    assert images.restore(picture, edited(picture)).info["icc_profile"] == profile


# Colour modes


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_kept_bit_for_bit(mode, rgb):
    alpha = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
    source = Image.fromarray(rgb).convert(mode[:-1])
    source.putalpha(Image.fromarray(alpha))
    picture = images.read(source)
    np.testing.assert_array_equal(picture.alpha, alpha)
    back = images.restore(picture, edited(picture))
    assert back.mode == mode
    np.testing.assert_array_equal(np.asarray(back)[..., -1], alpha)
    np.testing.assert_array_equal(
        outside_patch(np.asarray(back)), outside_patch(np.asarray(source))
    )


def test_grey_stays_grey_and_unedited_pixels_keep_their_value():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    picture = images.read(Image.fromarray(grey))
    assert picture.pixels.shape == (16, 16, 3)
    back = np.asarray(images.restore(picture, edited(picture)))
    assert back.shape == (16, 16)
    np.testing.assert_array_equal(outside_patch(back), outside_patch(grey))
    assert back[2, 3] == round(0.299 * 10 + 0.587 * 200 + 0.114 * 30)


def test_black_and_white_becomes_grey():
    source = Image.fromarray(np.eye(20, dtype=np.uint8) * 255).convert("1")
    picture = images.read(source)
    np.testing.assert_array_equal(picture.pixels[..., 1], np.eye(20) * 255)
    assert images.restore(picture, picture.pixels).mode == "L"


@pytest.mark.parametrize("format_name", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_to_eight(format_name):
    wide = np.linspace(0, 65535, 400).astype(np.uint16).reshape(20, 20)
    picture = images.read(encode(Image.fromarray(wide), format_name))
    np.testing.assert_array_equal(picture.pixels[..., 0], np.rint(wide / 257))
    assert picture.pixels.min() == 0 and picture.pixels.max() == 255
    assert images.restore(picture, picture.pixels).mode == "L"


def test_thirty_two_bit_grey_is_taken_only_in_the_range_of_sixteen():
    values = np.full((20, 20), 65535, np.int32)
    assert (images.read(Image.fromarray(values)).pixels == 255).all()
    with pytest.raises(ImageError, match="neither 8 nor 16 bits"):
        images.read(Image.fromarray(values + 1))


@pytest.mark.parametrize("transparent", [False, True])
def test_palettes_become_colour(transparent, rgb):
    source = Image.fromarray(rgb).quantize(16)
    options = {"transparency": 3} if transparent else {}
    picture = images.read(encode(source, "PNG", **options))
    np.testing.assert_array_equal(picture.pixels, np.asarray(source.convert("RGB")))
    assert images.restore(picture, picture.pixels).mode == ("RGBA" if transparent else "RGB")
    if transparent:
        np.testing.assert_array_equal(picture.alpha == 0, np.asarray(source) == 3)


def test_a_transparent_colour_becomes_alpha(rgb):
    rgb[5, 7] = (1, 2, 3)
    picture = images.read(encode(Image.fromarray(rgb), "PNG", transparency=(1, 2, 3)))
    assert picture.alpha[5, 7] == 0
    assert (picture.alpha == 0).sum() == 1


def test_cmyk_without_a_profile_is_converted_plainly():
    source = Image.new("CMYK", (20, 20), (255, 0, 0, 0))
    for given in (source, encode(source, "TIFF")):
        picture = images.read(given)
        assert tuple(picture.pixels[0, 0]) == (0, 255, 255)
        assert images.restore(picture, picture.pixels).mode == "RGB"


def test_cmyk_goes_through_its_profile_which_is_not_passed_on(monkeypatch):
    source = Image.new("CMYK", (20, 20), (255, 0, 0, 0))
    source.info["icc_profile"] = b"a press profile"
    seen = {}

    # Real press profiles may not be shipped, so the colour engine is a stand-in here.
    def transform(image, profile, to, outputMode):
        seen["profile"] = profile
        return Image.new(outputMode, image.size, (0, 158, 224))

    monkeypatch.setattr(ImageCms, "ImageCmsProfile", lambda file: file.read())
    monkeypatch.setattr(ImageCms, "profileToProfile", transform)
    picture = images.read(source)
    assert seen["profile"] == b"a press profile"
    assert tuple(picture.pixels[0, 0]) == (0, 158, 224)
    assert "icc_profile" not in picture.info


def test_cmyk_with_a_broken_profile_is_converted_plainly(caplog):
    source = Image.new("CMYK", (20, 20), (255, 0, 0, 0))
    source.info["icc_profile"] = b"not a profile"
    with caplog.at_level(logging.WARNING, logger="faceedit"):
        assert tuple(images.read(source).pixels[0, 0]) == (0, 255, 255)
    assert "profile" in caplog.text


@pytest.mark.parametrize("mode", ["F", "LAB"])
def test_modes_without_a_rule_are_refused(mode):
    with pytest.raises(ImageError, match=f"mode {mode}"):
        images.read(Image.new(mode, (20, 20)))


# Arrays and tensors


def noisy(shape, dtype):
    """Values of [0,1] that are not whole 8-bit levels, or bytes."""
    values = np.random.default_rng(1).random(shape)
    return (values * 255).astype(np.uint8) if dtype == np.uint8 else values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32, np.float64])
@pytest.mark.parametrize("channels", [(), (1,), (3,), (4,)])
def test_arrays_come_back_as_they_came_but_for_the_edit(dtype, channels):
    source = noisy((HEIGHT, WIDTH, *channels), dtype)
    picture = images.read(source)
    back = images.restore(picture, edited(picture))
    assert back.dtype == source.dtype and back.shape == source.shape
    np.testing.assert_array_equal(outside_patch(back), outside_patch(source))
    grey = round(0.299 * 10 + 0.587 * 200 + 0.114 * 30)
    expected = np.array((10, 200, 30) if channels in ((3,), (4,)) else (grey,), float)
    if dtype != np.uint8:
        expected = expected / 255
    np.testing.assert_allclose(back[3, 4].reshape(-1)[:3], expected, rtol=1e-3)
    if channels == (4,):
        np.testing.assert_array_equal(back[..., 3], source[..., 3])


def test_float_pixels_are_rounded_to_the_nearest_level():
    source = np.full((20, 20, 3), 0.5, np.float32)
    source[0, 0] = (0.0, 1.0, 1.0005)
    picture = images.read(source)
    assert tuple(picture.pixels[0, 0]) == (0, 255, 255)
    assert tuple(picture.pixels[1, 1]) == (128, 128, 128)


def test_arrays_with_strides_are_read_right(rgb):
    for view in (rgb[:, ::-1], rgb.transpose(1, 0, 2), rgb[..., ::-1]):
        picture = images.read(view)
        np.testing.assert_array_equal(picture.pixels, view)
        np.testing.assert_array_equal(images.restore(picture, picture.pixels), view)


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("batch", [(), (1,)])
def test_tensors_come_back_as_they_came_but_for_the_edit(dtype, batch):
    source = torch.rand((*batch, 3, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(1))
    source = (source * 255).to(dtype) if dtype == torch.uint8 else source.to(dtype)
    picture = images.read(source)
    back = images.restore(picture, edited(picture))
    assert back.dtype == source.dtype and back.shape == source.shape
    changed = (back != source).reshape(3, HEIGHT, WIDTH)
    assert changed[:, 2:6, 3:9].any()
    changed[:, 2:6, 3:9] = False
    assert not changed.any()
    pixel = back.reshape(3, HEIGHT, WIDTH)[:, 3, 4].double()
    expected = torch.tensor((10.0, 200.0, 30.0), dtype=torch.float64)
    torch.testing.assert_close(
        pixel, expected if dtype == torch.uint8 else expected / 255, rtol=4e-3, atol=0
    )


def test_tensor_pixels_are_those_of_the_same_array(rgb):
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    np.testing.assert_array_equal(images.read(tensor).pixels, rgb)
    np.testing.assert_array_equal(images.read(tensor.float() / 255).pixels, rgb)
    assert not images.read((tensor.float() / 255).requires_grad_()).original.requires_grad


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_the_caller_may_change_what_was_given(kind, rgb):
    source = rgb if kind == "array" else torch.from_numpy(rgb).permute(2, 0, 1)
    before = rgb.copy()
    picture = images.read(source)
    source[:] = 0
    np.testing.assert_array_equal(picture.pixels, before)
    back = images.restore(picture, picture.pixels)
    back = back if kind == "array" else back.permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(back, before)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((3, 40, 40), np.uint8), r"\(3, 40, 40\).*transpose\(1, 2, 0\)"),
        (np.zeros((2, 40, 40, 3), np.uint8), "edit_batch"),
        (np.zeros((40, 40, 2), np.uint8), r"\(40, 40, 2\)"),
        (np.zeros(40, np.uint8), r"\(40,\)"),
        (np.zeros((0, 40, 3), np.uint8), "Too small"),
        (np.zeros((40, 40, 3), np.int64), "dtype int64"),
        (np.zeros((40, 40, 3), bool), "dtype bool"),
        (np.full((40, 40, 3), np.nan), "NaN"),
        (np.full((40, 40, 3), np.inf, np.float32), "infinite"),
        (np.full((40, 40, 3), 255.0), "from 255 to 255.*Divide it by 255"),
        (np.full((40, 40, 3), -1.0), r"\(x \+ 1\) / 2"),
        (torch.zeros(40, 40, 3), r"permute\(2, 0, 1\)"),
        (torch.zeros(2, 3, 40, 40), "edit_batch"),
        (torch.zeros(1, 40, 40), r"\(1, 40, 40\)"),
        (torch.zeros(3, 0, 40), "Too small"),
        (torch.zeros(3, 40, 40, dtype=torch.int32), "dtype torch.int32"),
        (torch.full((3, 40, 40), float("nan")), "NaN"),
        (torch.full((3, 40, 40), float("-inf")), "infinite"),
        (torch.full((3, 40, 40), 2.0), "from 2 to 2"),
    ],
)
def test_arrays_and_tensors_that_are_no_pictures_are_refused(source, message):
    with pytest.raises(ImageError, match=message):
        images.read(source)


def test_one_bad_value_among_many_is_found():
    for bad in (np.nan, 1.01, -0.01):
        array = np.zeros((40, 40, 3), np.float32)
        array[17, 3, 1] = bad
        with pytest.raises(ImageError):
            images.read(array)
        with pytest.raises(ImageError):
            images.read(torch.from_numpy(array).permute(2, 0, 1))


def test_restore_refuses_pixels_of_another_picture(rgb):
    picture = images.read(rgb)
    for wrong in (rgb[1:], rgb.astype(np.float32), rgb[..., 0]):
        with pytest.raises(UsageError, match="uint8"):
            images.restore(picture, wrong)


# Several at once


def test_read_many_reads_lists_and_batches_in_order(rgb):
    mixed = images.read_many([rgb, Image.fromarray(255 - rgb)])
    np.testing.assert_array_equal(mixed[0].pixels, rgb)
    np.testing.assert_array_equal(mixed[1].pixels, 255 - rgb)
    batch = torch.stack([torch.zeros(3, 20, 30), torch.ones(3, 20, 30)])
    first, second = images.read_many(batch)
    assert (first.pixels == 0).all() and (second.pixels == 255).all()
    assert images.restore(second, second.pixels).shape == (3, 20, 30)
    assert len(images.read_many(batch.permute(0, 2, 3, 1).numpy())) == 2
    assert images.read_many([]) == []


def test_read_many_says_which_picture_is_bad(rgb):
    with pytest.raises(ImageNotFoundError, match="Picture 1 of the list: .*gone.jpg"):
        images.read_many([rgb, "gone.jpg", rgb])


@pytest.mark.parametrize(
    "single",
    ["photo.jpg", Path("photo.jpg"), b"bytes", np.zeros((20, 20, 3)), torch.zeros(3, 20, 20), 5],
)
def test_read_many_refuses_a_single_picture(single):
    with pytest.raises(UsageError):
        images.read_many(single)


# Saving


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".PNG"])
@pytest.mark.parametrize("kind", ["pil", "array", "tensor"])
def test_saved_without_loss(suffix, kind, rgb, tmp_path):
    source = {
        "pil": Image.fromarray(rgb),
        "array": rgb.astype(np.float32) / 255,
        "tensor": torch.from_numpy(rgb).permute(2, 0, 1),
    }[kind]
    path = images.save(source, tmp_path / f"result{suffix}")
    np.testing.assert_array_equal(np.asarray(reopen(path)), rgb)


def test_jpeg_is_saved_at_quality_95(rgb, tmp_path):
    path = images.save(rgb, tmp_path / "result.jpg")
    assert path.read_bytes() == encode(Image.fromarray(rgb), "JPEG", quality=95)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("opened", [False, True])
def test_what_comes_back_is_saved_with_its_metadata_by_pillow_too(suffix, opened, rgb, tmp_path):
    exif = Image.Exif()
    exif[MAKER] = "maker"
    picture = images.read(encode(Image.fromarray(rgb), "PNG", exif=exif, icc_profile=b"a profile"))
    back = images.restore(picture, picture.pixels)
    path = tmp_path / f"result{suffix}"
    if opened:
        with open(path, "wb") as file:
            back.save(file, {".jpg": "JPEG", ".tif": "TIFF"}.get(suffix, suffix[1:]))
    else:
        back.save(str(path))
    assert path.read_bytes() == images.save(picture_of(back), tmp_path / f"ours{suffix}").read_bytes()
    saved = reopen(path)
    assert saved.info["icc_profile"] == b"a profile" and saved.getexif()[MAKER] == "maker"


def picture_of(image):
    """The same as a plain PIL image."""
    plain = Image.fromarray(np.asarray(image))
    plain.info.update(image.info)
    return plain


def test_what_comes_back_is_saved_otherwise_where_that_is_asked_for(rgb, tmp_path):
    picture = images.read(encode(Image.fromarray(rgb), "PNG", icc_profile=b"a profile"))
    back = images.restore(picture, picture.pixels)
    back.save(tmp_path / "result.jpg", quality=20, icc_profile=None)
    assert (tmp_path / "result.jpg").read_bytes() == encode(Image.fromarray(rgb), "JPEG", quality=20)
    back.save(tmp_path / "result.bmp")
    assert reopen(tmp_path / "result.bmp").size == (WIDTH, HEIGHT)


def test_what_comes_back_equals_a_plain_image_of_the_same_pixels(rgb):
    picture = images.read(rgb_image := Image.fromarray(rgb))
    back = images.restore(picture, picture.pixels)
    assert isinstance(back, Image.Image)
    assert back == rgb_image and rgb_image == back and back == images.restore(picture, picture.pixels)
    assert back != images.restore(picture, edited(picture)) and back != Image.fromarray(255 - rgb)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_metadata_survives_read_restore_and_save(suffix, rgb, tmp_path):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[MAKER] = "maker"
    data = encode(Image.fromarray(rgb), "JPEG", exif=exif, icc_profile=profile)
    picture = images.read(data)
    path = images.save(images.restore(picture, picture.pixels), tmp_path / f"result{suffix}")
    saved = reopen(path)
    assert saved.size == (HEIGHT, WIDTH)
    assert saved.info["icc_profile"] == profile
    assert saved.getexif()[MAKER] == "maker"
    assert ORIENTATION not in saved.getexif()


@pytest.mark.parametrize(("suffix", "mode"), [(".png", "RGBA"), (".webp", "RGBA"), (".tif", "LA")])
def test_alpha_is_saved(suffix, mode, rgb, tmp_path):
    source = Image.fromarray(rgb).convert(mode[:-1])
    source.putalpha(77)
    saved = reopen(images.save(source, tmp_path / f"result{suffix}"))
    assert saved.mode == mode
    assert (np.asarray(saved)[..., -1] == 77).all()


def test_jpeg_takes_an_opaque_alpha_channel_and_refuses_transparency(rgb, tmp_path):
    source = Image.fromarray(rgb).convert("RGBA")
    assert reopen(images.save(source, tmp_path / "opaque.jpg")).mode == "RGB"
    source.putpixel((3, 3), (0, 0, 0, 254))
    with pytest.raises(ImageError, match=r"transparent pixels.*\.png"):
        images.save(source, tmp_path / "transparent.jpg")
    assert os.listdir(tmp_path) == ["opaque.jpg"]


def test_an_existing_file_is_replaced_only_on_request(rgb, tmp_path):
    path = tmp_path / "result.png"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True") as caught:
        images.save(rgb, path)
    assert isinstance(caught.value, OutputExistsError)
    assert path.read_bytes() == b"precious"
    images.save(rgb, path, overwrite=True)
    np.testing.assert_array_equal(np.asarray(reopen(path)), rgb)
    assert os.listdir(tmp_path) == ["result.png"]


def test_nothing_is_written_for_a_file_that_exists(tmp_path):
    path = tmp_path / "result.png"
    path.touch()
    with pytest.raises(OutputExistsError), files.write_whole(path):
        pytest.fail("the block was entered")


def test_a_failed_save_leaves_the_old_file_and_nothing_else(rgb, tmp_path, monkeypatch):
    path = tmp_path / "result.png"
    path.write_bytes(b"precious")

    def full_disk(self, target, **options):
        Path(target).write_bytes(b"half a pic")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        images.save(rgb, path, overwrite=True)
    assert path.read_bytes() == b"precious"
    assert os.listdir(tmp_path) == ["result.png"]


def test_a_file_that_appears_during_the_save_is_not_overwritten(rgb, tmp_path, monkeypatch):
    path = tmp_path / "result.png"
    save = Image.Image.save

    def slow(self, target, **options):
        path.write_bytes(b"precious")
        save(self, target, **options)

    monkeypatch.setattr(Image.Image, "save", slow)
    with pytest.raises(OutputExistsError):
        images.save(rgb, path)
    assert path.read_bytes() == b"precious"


@pytest.mark.parametrize("name", ["result", "result.gif", "result.xyz"])
def test_an_unknown_suffix_is_refused(name, rgb, tmp_path):
    with pytest.raises(UsageError, match=r"\.jpg, \.jpeg, \.png"):
        images.save(rgb, tmp_path / name)


def test_a_missing_folder_and_a_folder_as_target_are_refused(rgb, tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        images.save(rgb, tmp_path / "no" / "result.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        images.save(rgb, tmp_path / "folder.png", overwrite=True)


def test_a_picture_too_wide_for_the_format_is_refused(tmp_path):
    with pytest.raises(ImageError, match="WEBP"):
        images.save(np.zeros((16, 20_000, 3), np.uint8), tmp_path / "wide.webp")
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_saved_files_have_the_usual_permissions(rgb, tmp_path):
    (tmp_path / "plain").touch()
    path = images.save(rgb, tmp_path / "result.png")
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode
