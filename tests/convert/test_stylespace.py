"""StyleSpace channels: read from lists, and moved through W+ where W+ can."""

import foreign
import pytest
import torch

from faceedit.convert import stylespace
from faceedit.convert.stylespace import Channel, offset
from faceedit.errors import ConversionError


@pytest.mark.parametrize(
    "text",
    [
        "# smile\n6 501\n\n6_502 -10  # mirrored\n(11, 286): 2.5\n",
        "[[6, 501], [6, 502, -10], [11, 286, 2.5]]",
        "6, 501\n6,502,-1e1\n11 286 2.5",
    ],
)
def test_lists(text, tmp_path):
    path = tmp_path / "list.txt"
    path.write_text(text)
    assert stylespace.looks_like(path)
    assert stylespace.read(path) == [(6, 501, 1.0), (6, 502, -10.0), (11, 286, 2.5)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("6 501\nlayer 7\n", "line 2: 'layer 7'"),
        ("6 501 1 2", "line 1"),
        ("6 501 1e999", "not layer, channel"),
        ("6 501 --1", "line 1"),
        ("[[6]]", "entry 0"),
        ("[[6, -1]]", "entry 0"),
        ("[[6, 0.5]]", "entry 0"),
        ('[["6", 1]]', "no list of numbers"),
        ("[6, 501]", "no list of numbers"),
        ("[[6, NaN]]", "entry 0"),
        ("[[6, 501]", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "lists no channel"),
        ("# nothing\n", "lists no channel"),
        ("6 501\n\x80", "is no text"),
    ],
)
def test_lists_that_are_none(text, said, tmp_path):
    (tmp_path / "list.txt").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConversionError) as caught:
        stylespace.read(tmp_path / "list.txt")
    assert said in str(caught.value)


def test_other_files_do_not_look_like_lists(tmp_path):
    for data in (b"", b"hello 1 2", b"\x80\x02}.", b"PK\x03\x04", b"(dp0\n.", b"# only a comment"):
        (tmp_path / "file").write_bytes(data)
        assert not stylespace.looks_like(tmp_path / "file"), data


def styles(generator, latents):
    """All scales of StyleSpace, layer by layer as in the paper's figure: convolutions and image heads."""
    found = [generator.first.style(latents[0]), generator.heads[0].style(latents[1])]
    for level, module in enumerate(generator.levels, 1):
        found.append(module.conv1.style(latents[2 * level - 1]))
        found.append(module.conv2.style(latents[2 * level]))
        found.append(generator.heads[level].style(latents[2 * level + 1]))
    return found


def test_only_the_wanted_channels_move():
    generator = foreign.generator()
    # Layer 9 alone reads row 6, and layer 10 row 7; both have fewer channels than W has dimensions.
    change = offset([Channel(9, 2, 0.3), Channel(9, 3, -0.2), Channel(10, 5, 0.1)], generator, step=2.0)
    assert change.shape == (foreign.ROWS, foreign.DIM)
    before = torch.randn(foreign.ROWS, foreign.DIM, generator=torch.Generator().manual_seed(0))
    moved = [a - b for a, b in zip(styles(generator, before + change), styles(generator, before), strict=True)]
    for layer, difference in enumerate(moved):
        expected = torch.zeros_like(difference)
        if layer == 9:
            expected[2], expected[3] = 0.6, -0.4
        if layer == 10:
            expected[5] = 0.2
        torch.testing.assert_close(difference, expected, rtol=0, atol=1e-5)


def test_what_w_plus_cannot_express_is_refused():
    generator = foreign.generator()
    # Row 1 is read by layers 1 and 2, with 32 channels together: more than W's 24 dimensions.
    with pytest.raises(ConversionError, match=r"Row 1 of W\+ cannot move \(2, 3\) alone.*undone"):
        offset([Channel(2, 3, 0.1)], generator)
    with pytest.raises(ConversionError, match="would take a change of length"):
        offset([Channel(9, 2, 1000.0)], generator)


@pytest.mark.parametrize(("channel", "said"), [((11, 0), "there are 11 layers"), ((9, 16), "it has 8 channels")])
def test_a_channel_that_is_not_there(channel, said):
    with pytest.raises(ConversionError, match=said):
        offset([Channel(*channel, 1.0)], foreign.generator())
