"""Inversions survive a file exactly; results are saved as the pictures they are."""

import dataclasses
import os

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from faceedit import images
from faceedit.crop import CropFrame
from faceedit.errors import (
    CheckpointError,
    CheckpointNotFoundError,
    OutputExistsError,
    UsageError,
)
from faceedit.results import EditedFace, EditResult, Inversion


@pytest.fixture
def inversion():
    """Every field set; twelve feature maps, so that their order is not that of their names."""
    generator = torch.Generator().manual_seed(0)
    return Inversion(
        latents=torch.randn(16, 512, generator=generator).requires_grad_(),
        features=tuple(torch.full((2, 4, 4), float(level)) for level in range(12)),
        drawn=torch.rand(3, 8, 8, generator=generator),
        outline=torch.rand(5, 2, generator=generator),
        eyes=torch.rand(2, 4, 2, generator=generator),
        mouth=torch.rand(6, 2, generator=generator),
        person=torch.rand(8, 8, generator=generator),
        skin=torch.rand(8, 8, generator=generator),
        hair=torch.rand(8, 8, generator=generator),
        crop=torch.rand(3, 32, 32, generator=generator),
        reconstruction=torch.rand(3, 32, 32, generator=generator).transpose(1, 2),
        frame=CropFrame((100.125, 80.1), (40.3, -3.7)),
        box=(60.0, 41.5, 141.0, 122.0),
        index=2,
        picture=images.read(np.zeros((200, 300, 3), np.uint8)),
    )


def test_an_inversion_survives_a_file_exactly(inversion, tmp_path):
    path = inversion.save(tmp_path / "face.inversion")
    read = Inversion.load(str(path))
    for name in ("latents", "drawn", "outline", "eyes", "mouth", "person", "skin", "hair", "crop", "reconstruction"):
        assert torch.equal(getattr(read, name), getattr(inversion, name))
        assert not getattr(read, name).requires_grad
    assert len(read.features) == 12
    assert all(map(torch.equal, read.features, inversion.features))
    assert (read.frame, read.box, read.index) == (inversion.frame, inversion.box, 2)
    assert read.picture is None


def test_what_an_inversion_lacks_stays_lacking(tmp_path):
    read = Inversion.load(Inversion(latents=torch.zeros(2, 4)).save(tmp_path / "face"))
    assert read.features == ()
    assert (read.drawn, read.outline, read.person, read.skin, read.hair) == (None,) * 5
    assert (read.crop, read.reconstruction, read.frame, read.box) == (None,) * 4
    assert read.eyes is None and read.mouth is None


def test_a_saved_inversion_is_replaced_only_on_request(inversion, tmp_path):
    path = inversion.save(tmp_path / "face")
    other = dataclasses.replace(inversion, index=5)
    with pytest.raises(OutputExistsError):
        other.save(path)
    assert Inversion.load(path).index == 2
    other.save(path, overwrite=True)
    assert Inversion.load(path).index == 5
    assert os.listdir(tmp_path) == ["face"]


def test_files_that_are_no_inversion_are_refused(inversion, tmp_path):
    with pytest.raises(CheckpointNotFoundError, match="no file .*gone"):
        Inversion.load(tmp_path / "gone")
    path = inversion.save(tmp_path / "face")
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="truncated or corrupt"):
            Inversion.load(path)
    save_file({"latents": torch.zeros(2, 4)}, path)
    with pytest.raises(CheckpointError, match="no inversion that this release can read"):
        Inversion.load(path)


def test_results_cannot_be_changed(inversion):
    with pytest.raises(dataclasses.FrozenInstanceError):
        inversion.index = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        EditResult(image=None).image = 1


def test_a_result_is_saved_whatever_its_type(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    kinds = {
        "pil": Image.fromarray(pixels),
        "array": pixels,
        "tensor": torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255,
    }
    for kind, image in kinds.items():
        path = EditResult(image=image).save(tmp_path / f"{kind}.png")
        np.testing.assert_array_equal(images.read(path).pixels, pixels)
    with pytest.raises(OutputExistsError):
        EditResult(image=pixels).save(path)
    EditResult(image=255 - pixels).save(path, overwrite=True)
    np.testing.assert_array_equal(images.read(path).pixels, 255 - pixels)
    with pytest.raises(UsageError, match="format"):
        EditResult(image=pixels).save(tmp_path / "result")


def test_a_face_tells_what_was_done_to_it(inversion):
    face = EditedFace(
        crop=inversion.crop,
        output=inversion.reconstruction,
        edited=inversion.reconstruction,
        refined=None,
        relevance=(),
        reconstruction=inversion.reconstruction,
        mask=torch.ones(inversion.reconstruction.shape[-2:]),
        frame=inversion.frame,
        latents=inversion.latents,
        strengths={"smile": 1.0},
        applied={"smile": 0.7},
    )
    assert EditResult(image=None, faces=(face,)).faces[0].strengths == {"smile": 1.0}
    assert face.applied == {"smile": 0.7}
