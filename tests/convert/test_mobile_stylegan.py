"""The converter: a small network written in the foreign layout and read back, and the real one."""

import importlib.util
import os
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from faceedit import hub
from faceedit.convert import mobile_stylegan
from faceedit.convert.mobile_stylegan import convert
from faceedit.errors import ConversionError
from faceedit.models.mobile_stylegan import MobileStyleGAN

DATA = Path(__file__).resolve().parents[1] / "data"
FILES = [f"{name}.{suffix}" for name in ("MappingNetwork", "SynthesisNetwork") for suffix in ("xml", "bin")]
WHEEL = os.environ.get("FACEEDIT_RANDOM_FACE_WHEEL")


# A network in OpenVINO's layout


class Writer:
    """Writes layers the way the exporter does: constants in one .bin, the graph in .xml."""

    def __init__(self):
        self.root = ElementTree.Element("net", version="10")
        self.layers = ElementTree.SubElement(self.root, "layers")
        self.edges = ElementTree.SubElement(self.root, "edges")
        self.blob = b""

    def layer(self, name, kind, inputs=(), **data):
        number = str(len(self.layers))
        layer = ElementTree.SubElement(self.layers, "layer", id=number, name=name, type=kind)
        if data:
            ElementTree.SubElement(layer, "data", {k: str(v) for k, v in data.items()})
        for port, source in enumerate(inputs):
            edge = {"from-layer": source, "from-port": "0", "to-layer": number, "to-port": str(port)}
            ElementTree.SubElement(self.edges, "edge", edge)
        return number

    def constant(self, name, tensor):
        values = tensor.numpy().astype("<f4").tobytes()
        self.blob += b"\0" * (-len(self.blob) % 8)
        shape = ", ".join(map(str, tensor.shape))
        place = {"element_type": "f32", "shape": shape, "offset": len(self.blob), "size": len(values)}
        self.blob += values
        return self.layer(name, "Const", **place)

    def save(self, folder, network):
        (folder / f"{network}.xml").write_bytes(ElementTree.tostring(self.root))
        (folder / f"{network}.bin").write_bytes(self.blob)


def write_mapping(folder, state):
    writer = Writer()
    x = writer.layer("var", "Parameter")
    for i in range(8):
        weight = writer.constant(str(173 + 4 * i), state[f"mapping.layers.{i}.weight"])
        product = writer.layer(f"MatMul_{i}", "MatMul", [x, weight])
        bias = writer.constant(str(174 + 4 * i), state[f"mapping.layers.{i}.bias"])
        shape = writer.layer(f"Concat_{i}", "Concat")
        row = writer.layer(f"Reshape_{i}", "Reshape", [bias, shape])
        x = writer.layer(f"Add_{i}", "Add", [product, row])
    writer.layer("style/sink_port_0", "Result", [x])
    writer.save(folder, "MappingNetwork")


def details_by_channel(x):
    """The file's order of Haar bands: the low-pass channels, then three details for each of them."""
    n = len(x) // 4
    return torch.cat([x[:n], x[n:].unflatten(0, (3, n)).transpose(0, 1).flatten(0, 1)])


def write_synthesis(folder, state, levels):
    writer = Writer()
    state = dict(state)
    # All that a transform reads: the layer before it, and the scales between the two.
    layers = ["first", *(f"levels.{i}.conv2" for i in range(levels - 1)), *(f"levels.{i}.up" for i in range(levels))]
    for name in [f"{layer}.{kind}" for layer in [*layers, "head"] for kind in ("weight", "bias")]:
        state[name] = details_by_channel(state[name])
    style = writer.layer("style", "Parameter")

    def affine(name, key, fan_in):
        weight = writer.constant(f"{name}.modulation.weight", state[f"{key}.weight"] * fan_in**0.5)
        bias = writer.constant(f"{name}.modulation.bias", state[f"{key}.bias"][None] * fan_in**0.5)
        return writer.layer(f"{key}.Gemm", "Add", [writer.layer("Gemm", "MatMul", [style, weight]), bias])

    def styled(x, name, key):
        weight, scale = state[f"{key}.weight"], affine(f"{name}.conv", f"{key}.style", 9 * state[f"{key}.weight"].shape[1])
        x = writer.layer("Mul", "Multiply", [scale, x])
        if f"{key}.depthwise" in state:
            kernel = writer.constant(f"{name}.conv.weight_dw", state[f"{key}.depthwise"][:, None])
            x = writer.layer("Conv", "GroupConvolution", [x, kernel])
        x = writer.layer("Conv", "Convolution", [x, writer.constant("Mul_39_copy", weight)])
        x = writer.layer("Add", "Add", [x, writer.constant("1531", state[f"{key}.noise"][None, None])])
        bias = writer.constant(f"{name}.bias", state[f"{key}.bias"].view(1, -1, 1, 1))
        return writer.layer("LeakyRelu", "PReLU", [writer.layer("Add", "Add", [x, bias])])

    x = styled(writer.constant("m.input.input", state["constant"]), "m.conv1", "first")
    for i in range(levels):
        x = writer.layer("Mul", "Multiply", [affine(f"m.layers.{i}.up", f"levels.{i}.up", 1), x])
        x = writer.layer("Haar", "GroupConvolutionBackpropData", [x])
        for j in (1, 2):
            x = styled(x, f"m.layers.{i}.conv{j}", f"levels.{i}.conv{j}")
    name = f"m.layers.{levels - 1}.to_img"
    weight = writer.constant(f"{name}.conv.weight", state["head.weight"])
    scale = affine(f"{name}.conv", "head.style", state["head.weight"].shape[1])
    x = writer.layer("Conv", "Convolution", [writer.layer("Mul", "Multiply", [scale, x]), weight])
    bias = writer.constant(f"{name}.bias", state["head.bias"].view(1, -1, 1, 1))
    writer.layer("image", "Result", [writer.layer("Add", "Add", [x, bias])])
    writer.save(folder, "SynthesisNetwork")


def small_generator():
    torch.manual_seed(0)
    generator = MobileStyleGAN(channels=(8, 8, 4), preview_level=1)
    for parameter in generator.parameters():
        parameter.normal_(std=0.05)
    return generator


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder that must not be written to, and the state dict that it holds."""
    folder = tmp_path_factory.mktemp("ir")
    state = small_generator().state_dict()
    write_mapping(folder, state)
    write_synthesis(folder, state, levels=2)
    return folder, {k: v for k, v in state.items() if not k.startswith(("preview_head.", "mean_latent"))}


@pytest.fixture
def folder(written, tmp_path):
    """A copy that a test may damage."""
    for name in FILES:
        (tmp_path / name).write_bytes((written[0] / name).read_bytes())
    return tmp_path


@pytest.fixture(autouse=True)
def few_samples(monkeypatch):
    """The mean of W from a hundred draws rather than a hundred thousand."""
    monkeypatch.setattr(mobile_stylegan, "_MEAN_SAMPLES", 100)


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as wheel:
        for name in FILES:
            if (folder / name).exists():
                wheel.write(folder / name, f"random_face/data/{name}")
    return path


def test_every_weight_arrives_where_it_belongs(written):
    folder, state = written
    converted = convert(folder)
    assert converted.keys() == state.keys() | {"mean_latent"}
    for name, value in state.items():
        torch.testing.assert_close(converted[name], value, msg=name)
    generator = small_generator()
    missing, unexpected = generator.load_state_dict(converted, strict=False)
    assert not unexpected
    assert all(name.startswith("preview_head.") for name in missing)


def test_the_mean_of_w_is_measured_on_fixed_draws(written):
    mean = convert(written[0])["mean_latent"]
    generator = small_generator()
    z = torch.randn(100, 512, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean, generator.map(z).mean(0))


def test_a_wheel_gives_what_its_folder_gives(folder):
    from_wheel = convert(zipped(folder, folder / "random_face.whl"))
    from_folder = convert(folder)
    assert all(torch.equal(from_wheel[name], value) for name, value in from_folder.items())


# Refused


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ConversionError, match=name):
        convert(folder)
    with pytest.raises(ConversionError, match=name):
        convert(zipped(folder, folder / "random_face.whl"))


@pytest.mark.parametrize("name", ["MappingNetwork.bin", "SynthesisNetwork.bin"])
def test_a_truncated_file_is_refused(folder, name):
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) - 100])
    with pytest.raises(ConversionError, match="truncated"):
        convert(folder)


@pytest.mark.parametrize("content", [b"", b"this is no zip file"])
def test_a_file_that_is_no_wheel_is_refused(tmp_path, content):
    path = tmp_path / "random_face-2021.7.21.1-py3-none-any.whl"
    path.write_bytes(content)
    with pytest.raises(ConversionError, match="pip download"):
        convert(path)
    with pytest.raises(ConversionError, match="pip download"):
        convert(tmp_path / "nowhere.whl")


def test_another_package_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "other.whl", "w") as wheel:
        wheel.writestr("other/__init__.py", "")
    with pytest.raises(ConversionError, match="MappingNetwork"):
        convert(tmp_path / "other.whl")


def test_the_two_networks_in_each_others_place_are_refused(folder):
    for suffix in ("xml", "bin"):
        mapping, synthesis = (folder / f"{name}.{suffix}" for name in ("MappingNetwork", "SynthesisNetwork"))
        mapping.rename(folder / "aside")
        synthesis.rename(mapping)
        (folder / "aside").rename(synthesis)
    with pytest.raises(ConversionError):
        convert(folder)


@pytest.mark.parametrize("network", ["MappingNetwork", "SynthesisNetwork"])
@pytest.mark.parametrize(
    "xml",
    [
        b"no XML",
        b"<net/>",
        b'<net><layers><layer id="0" name="x" type="Parameter"/></layers></net>',
        b'<net><layers><layer id="0" name="x" type="Const"/></layers></net>',
        b'<net><layers><layer id="0" name="x" type="MatMul"/></layers></net>',
    ],
)
def test_another_network_is_refused(folder, network, xml):
    (folder / f"{network}.xml").write_bytes(xml)
    with pytest.raises(ConversionError):
        convert(folder)


@pytest.mark.parametrize("gone", ["m.conv1.bias", "m.layers.1.to_img.bias", "m.layers.0.conv2.conv.weight_dw"])
def test_a_missing_constant_is_named(folder, gone):
    path = folder / "SynthesisNetwork.xml"
    path.write_text(path.read_text().replace(f'"{gone}"', '"another"'))
    with pytest.raises(ConversionError, match=gone):
        convert(folder)


# The real one


def make_golden():
    spec = importlib.util.spec_from_file_location("make_golden", DATA / "make_golden.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_the_packaged_weights_still_draw_the_golden_pictures():
    """Golden: float32. Packaged: float16, which moves W by at most 0.002, the means of blocks by
    0.003, and pixels by 0.0004 on average, 0.011 at one in a thousand and 0.061 at the worst (all on
    [-1, 1])."""
    folder = Path(hub.__file__).parent / "weights" / "default"
    if not folder.is_dir():
        pytest.skip("the package holds no default checkpoint yet")
    module = make_golden()
    golden = load_file(module.GOLDEN)
    generator = MobileStyleGAN().eval()
    hub.load_module(generator, hub.load_checkpoint(folder)[1], "generator")
    torch.testing.assert_close(generator.map(golden["z"], 0.7), golden["w"], rtol=0, atol=4e-3)
    preview = "preview.pixels" in golden
    found = module.pictures(generator, golden["w"], preview)
    assert found.keys() == golden.keys() - {"z", "w"}
    for name, value in found.items():
        error = (value - golden[name]).abs()
        if name.endswith(".blocks"):
            assert error.max() <= 6e-3, name
        else:
            assert error.mean() <= 1e-3, name
            assert error.quantile(0.999) <= 2e-2, name
            assert error.max() <= 0.12, name


@torch.no_grad()
def test_the_wheel_drawn_by_us_and_by_openvino(tmp_path, capsys):
    openvino = pytest.importorskip("openvino", reason="needs the openvino extra")
    if not WHEEL:
        pytest.skip("needs FACEEDIT_RANDOM_FACE_WHEEL, the path of random_face-2021.7.21.1-py3-none-any.whl")
    with zipfile.ZipFile(WHEEL) as wheel:
        for name in FILES:
            (tmp_path / name).write_bytes(wheel.read(f"random_face/data/{name}"))
    core = openvino.Core()

    def theirs(network):
        model = core.compile_model(
            core.read_model(tmp_path / f"{network}.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        return lambda x: torch.from_numpy(np.array(next(iter(model(x.numpy()).values()))))

    mapping, synthesis = theirs("MappingNetwork"), theirs("SynthesisNetwork")
    state = convert(WHEEL)
    ours, stored = MobileStyleGAN().eval(), MobileStyleGAN().eval()
    ours.load_state_dict(state, strict=False)
    stored.load_state_dict({name: value.half().float() for name, value in state.items()}, strict=False)

    mapped, drawn, added = [], [], []
    for z in torch.randn(3, 1, 512, generator=torch.Generator().manual_seed(1)):
        w = mapping(z)
        mapped.append((ours.map(z) - w).abs().max().item())
        w = ours.mean_latent.lerp(w, 0.7)
        image = ours(ours.broadcast(w))
        drawn.append((image - synthesis(w)).abs().max().item())
        added.append((stored(stored.broadcast(w)) - image).abs())
    added = torch.stack(added)
    with capsys.disabled():
        print(
            f"\n3 faces, pixels in [-1, 1], against OpenVINO {openvino.__version__}: W within {max(mapped):.1e}, "
            f"pictures within {max(drawn):.1e}. Weights stored as float16 add {added.mean():.1e} on average, "
            f"{added.max():.1e} at most."
        )
    assert max(mapped) <= 1e-5
    assert max(drawn) <= 1e-3
    assert added.mean() <= 5e-4
    assert added.max() <= 5e-2
