"""The identity network: its framing and loss at once, its agreement with dlib where the files are.

Two variables lead to the files: ``FACEEDIT_FACE_API``, npm ``@vladmandic/face-api`` (.tgz or folder), and
``FACEEDIT_DLIB_MODELS``, the folder ``models`` of PyPI ``face-recognition-models``. A third,
``FACEEDIT_FACES``, is a folder of photographs with one face each.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from faceedit.train import identity
from faceedit.train.identity import DlibFaceNet, identity_chip, identity_loss, load_identity


@pytest.fixture(scope="module")
def network() -> DlibFaceNet:
    torch.manual_seed(0)
    network = DlibFaceNet().eval()
    network.mean.copy_(0.1 * torch.randn(128))
    return network


def test_descriptor_shape_and_zero_padding_of_the_skips(network):
    chips = torch.rand(2, 3, 150, 150)
    with torch.no_grad():
        descriptors = network(chips)
        x = torch.rand(1, 32, 35, 35)
        block = network.blocks[3]
        y = block(x)
        branch = block.conv2(F.relu(block.conv1(x)))
    assert descriptors.shape == (2, 128)
    assert y.shape == (1, 64, 17, 17)
    torch.testing.assert_close(y[:, :32], F.relu(F.avg_pool2d(x, 2) + branch[:, :32]))
    torch.testing.assert_close(y[:, 32:], F.relu(branch[:, 32:]))


def test_weights_are_frozen_and_the_picture_gets_a_gradient(network):
    a = (torch.rand(2, 3, 64, 64) * 2 - 1).requires_grad_()
    b = torch.rand(2, 3, 96, 96) * 2 - 1
    loss = identity_loss(network, a, b)
    assert loss.shape == (2,)
    assert ((loss >= 0) & (loss <= 2)).all()
    loss.sum().backward()
    inside = a.grad[:, :, 20:58, 12:52]
    assert torch.isfinite(a.grad).all()
    assert (inside != 0).float().mean() > 0.99
    assert not any(p.requires_grad for p in network.parameters())


def test_loss_is_one_minus_the_centred_cosine(network):
    a, b = torch.rand(2, 1, 3, 128, 128) * 2 - 1
    p, q = network(identity_chip(a)) - network.mean, network(identity_chip(b)) - network.mean
    expected = 1 - F.cosine_similarity(p, q)
    torch.testing.assert_close(identity_loss(network, a, b), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(identity_loss(network, a, a), torch.zeros(1), atol=1e-5, rtol=0)


@pytest.mark.parametrize("size", [200, 256, 512, 1024])
def test_chip_puts_the_landmarks_of_an_ffhq_crop_where_dlib_has_them(size):
    # Mean 5-point landmarks of FFHQ-aligned faces and of dlib's template, in parts of the side.
    ffhq = [(0.6705, 0.475), (0.572, 0.4795), (0.327, 0.475), (0.4255, 0.479), (0.4965, 0.6615)]
    template = [(0.7397, 0.3090), (0.5974, 0.3193), (0.2471, 0.3092), (0.3894, 0.3194), (0.4934, 0.5852)]
    axis = (torch.arange(size) + 0.5) / size
    for (x, y), (u, v) in zip(ffhq, template, strict=True):
        spot = torch.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * 0.02**2))
        chip = identity_chip((spot * 2 - 1).expand(1, 3, size, size))
        assert chip.shape == (1, 3, 150, 150)
        assert chip.min() >= 0 and chip.max() <= 1
        weight = chip[0, 0] / chip[0, 0].sum()
        place = (torch.arange(150) + 0.5) / 150
        assert float((weight.sum(0) * place).sum()) == pytest.approx(u, abs=0.012)
        assert float((weight.sum(1) * place).sum()) == pytest.approx(v, abs=0.012)


def test_chip_is_alike_at_every_resolution():
    torch.manual_seed(1)
    large = F.interpolate(torch.rand(1, 3, 24, 24) * 2 - 1, 1024, mode="bicubic").clamp(-1, 1)
    small = F.interpolate(large, 256, mode="area")
    assert (identity_chip(large) - identity_chip(small)).abs().mean() < 0.01


def test_from_face_api_restores_the_8_bit_arrays(tmp_path):
    folder = tmp_path / "package" / "model"
    folder.mkdir(parents=True)
    names = ["conv32_down"] + [f"{b[0]}/conv{i}" for b in identity._BLOCKS for i in (1, 2)]
    shapes = [(7, 7, 3, 32)] + [(3, 3, m, n) for _, k, n, _ in identity._BLOCKS for m in (k, n)]
    entries, blob = [], b""
    for name, shape in zip(names, shapes, strict=True):
        coded = {"dtype": "uint8", "scale": 0.5, "min": -1.0}
        entries.append({"name": f"{name}/conv/filters", "shape": shape, "dtype": "float32", "quantization": coded})
        blob += (np.arange(np.prod(shape)) % 251).astype(np.uint8).tobytes()
        for part, value in (("conv/bias", 2), ("scale/weights", 3), ("scale/biases", 5)):
            entries.append({"name": f"{name}/{part}", "shape": shape[3:], "dtype": "float32"})
            blob += np.full(shape[3], value, "<f4").tobytes()
    entries.append({"name": "fc", "shape": (256, 128), "dtype": "float32"})
    blob += np.arange(256 * 128, dtype="<f4").tobytes()
    (folder / "face_recognition_model-weights_manifest.json").write_text(json.dumps([{"weights": entries}]))
    (folder / "face_recognition_model.bin").write_bytes(blob)

    network = DlibFaceNet.from_face_api(tmp_path)
    row, column, channel, out = 4, 2, 1, 7
    value = ((row * 7 + column) * 3 + channel) * 32 + out
    assert float(network.stem.weight[out, channel, row, column]) == 3 * ((value % 251) * 0.5 - 1)
    assert float(network.blocks[13].conv2.bias[9]) == 2 * 3 + 5
    assert float(network.head.weight[3, 2]) == 2 * 128 + 3


def test_from_face_api_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="face_recognition_model"):
        DlibFaceNet.from_face_api(tmp_path)


def test_main_measures_the_mean_and_the_file_loads(tmp_path, monkeypatch, network):
    random = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(random.integers(0, 256, (200, 200, 3), np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr(DlibFaceNet, "from_face_api", classmethod(lambda cls, path: cls().eval()))
    torch.manual_seed(3)
    out = tmp_path / "identity.safetensors"
    assert identity.main(["--face-api", "none", "--faces", str(tmp_path), "--out", str(out)]) == 0
    loaded = load_identity(out)
    pictures = [np.array(Image.open(tmp_path / f"{i}.png")) for i in range(3)]
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) / 255
    expected = loaded(identity._cut(x, identity._UTKFACE_BOX)).mean(0)
    torch.testing.assert_close(loaded.mean, expected, atol=1e-5, rtol=1e-4)
    assert loaded.mean.abs().max() > 0
    assert not loaded.training


def test_main_refuses_a_folder_without_pictures(tmp_path):
    with pytest.raises(SystemExit) as raised:
        identity.main(["--face-api", "none", "--faces", str(tmp_path), "--out", str(tmp_path / "out")])
    assert raised.value.code == 2


@pytest.fixture(scope="module")
def dlib_faces():
    """Chips by dlib of a few photographs ``(N, 150, 150, 3)`` uint8, and dlib's own descriptors."""
    variables = ("FACEEDIT_FACE_API", "FACEEDIT_DLIB_MODELS", "FACEEDIT_FACES")
    missing = [name for name in variables if not Path(os.environ.get(name) or "missing").exists()]
    if missing:
        pytest.skip(f"set {', '.join(missing)} to measure the agreement with dlib")
    dlib = pytest.importorskip("dlib")
    models, faces = (Path(os.environ[name]) for name in variables[1:])
    find = dlib.get_frontal_face_detector()
    landmarks = dlib.shape_predictor(str(models / "shape_predictor_5_face_landmarks.dat"))
    recognise = dlib.face_recognition_model_v1(str(models / "dlib_face_recognition_resnet_model_v1.dat"))
    chips = []
    pictures = sorted(faces.rglob("*.jpg"))
    for path in pictures[:: max(1, len(pictures) // 16)]:
        rgb = np.array(Image.open(path).convert("RGB"))
        boxes = find(rgb, 0)
        if len(boxes) == 1:
            chips.append(dlib.get_face_chip(rgb, landmarks(rgb, boxes[0]), 150, 0.25))
    return np.stack(chips), np.array([recognise.compute_face_descriptor(chip) for chip in chips])


def test_descriptors_agree_with_dlib(dlib_faces):
    chips, expected = dlib_faces
    network = DlibFaceNet.from_face_api(os.environ["FACEEDIT_FACE_API"])
    with torch.no_grad():
        descriptors = network(torch.from_numpy(chips).permute(0, 3, 1, 2) / 255)
    expected = torch.from_numpy(expected).float()
    assert len(chips) >= 5
    assert F.cosine_similarity(descriptors, expected).min() >= 0.999
    assert (descriptors - expected).norm(dim=1).max() < 0.08
