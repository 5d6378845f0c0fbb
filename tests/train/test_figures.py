"""Figures: zeros are white, strong entries dark, every tile where its caption says."""

import numpy as np
import torch

from faceedit.directions import Directions
from faceedit.results import Inversion
from faceedit.train import figures
from faceedit.train.figures import directions_figure, heatmap, photograph_sheets


class GreyFaces:
    """Grey faces; +1 makes them white."""

    n = 3

    def draw(self, rows, name=None, strength=0.0):
        return torch.full((len(rows), 3, 32, 32), 0.0 if name is None else strength)


def test_a_heatmap_shows_zeros_white_and_the_largest_entry_darkest():
    direction = torch.zeros(4, 8)
    direction[1, 2], direction[3, 7] = -2.0, 0.02
    picture = heatmap(direction, (80, 40)).astype(int)
    assert picture.shape == (40, 80, 3)
    assert (picture[:10] == 255).all()
    assert (picture[15, 25] == picture.reshape(-1, 3)[picture.sum(2).argmin()]).all()
    assert (picture[35, 75] < 255).any() and picture[35, 75].sum() > picture[15, 25].sum()
    assert (heatmap(torch.zeros(2, 4)) == 255).all()


def test_a_narrow_heatmap_loses_no_entry():
    direction = torch.zeros(1, 512)
    direction[0, 301] = 1.0
    assert (heatmap(direction, (64, 4)) < 255).any(2).any(0).sum() == 1


def test_the_directions_figure_has_a_row_an_attribute_and_a_block_a_training():
    vectors = {"smile": torch.eye(4), "age": torch.ones(4, 4)}
    directions, faces = Directions(vectors), GreyFaces()
    sheet = np.array(directions_figure({"smile": [0, 1], "age": [2]}, directions, faces))
    tile, heat, head = figures._TILE, figures._HEAT[0], figures._HEAD
    assert sheet.shape[0] == 2 * (head + tile + figures._GAP)
    row = sheet[head + tile // 2]
    first = heat + figures._GAP
    centres = [tuple(row[first + i * tile + tile // 2]) for i in range(4)]
    assert centres == [(128,) * 3, (255,) * 3] * 2
    without = Directions({"age": torch.ones(4, 4)})
    both = np.array(directions_figure({"smile": [0, 1], "age": [2]}, directions, faces, without, faces))
    assert both.shape[1] == 2 * sheet.shape[1]
    right = both[:, sheet.shape[1] :]
    assert (right[head : head + tile] == 255).all()  # smile was not trained without L_spa
    assert (right[-tile // 2] < 255).any()


def test_photographs_stand_beside_their_edits():
    inversions = [Inversion(torch.zeros(1, 1), crop=torch.full((3, 8, 8), shade)) for shade in (0.2, 0.4, 0.6)]
    edited = {(i, name): torch.full((3, 16, 16), 50 * (i + 1), dtype=torch.uint8) for i in range(3) for name in ("a", "b")}
    sheets = [np.array(sheet) for sheet in photograph_sheets(["a", "b"], inversions, edited, rows=2)]
    tile, head = figures._TILE, figures._HEAD
    assert [sheet.shape for sheet in sheets] == [(head + 2 * tile, 4 * tile, 3), (head + tile, 4 * tile, 3)]
    middle = tile // 2
    assert sheets[0][head + tile + middle, middle, 0] == round(0.4 * 255)
    assert sheets[0][head + tile + middle, 3 * tile + middle, 0] == 100
    assert sheets[1][head + middle, 2 * tile + middle, 0] == 150
    assert (sheets[0][head + middle, tile + middle] == 255).all()  # no reconstruction was kept
