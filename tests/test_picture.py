"""Pictures that agents offer: where their numbers and names are painted."""

import numpy as np
import pytest
import torch
from matplotlib import colormaps

from clenv.picture import Picture, named, paint

TASKS = ["first", "second"]
INK = 120  # darker is a letter, or a dark cell


def test_tasks_are_named_by_their_ids():
    assert named([(1, 2), ("layer 1", 3)], TASKS) == [("second", 2), ("layer 1", 3)]


def test_cells_have_the_colours_of_their_values():
    values = torch.tensor([[0.0, 0.25, 1.0], [1.0, 0.5, 0.0]])
    image = paint(Picture(values), TASKS)
    assert image.dtype == np.uint8
    for row in range(2):
        for column in range(3):
            cell = image[6 + 24 * row : 30 + 24 * row, 12 + 24 * column : 36 + 24 * column]
            expected = np.uint8(255 * np.array(colormaps["cividis"](values[row, column].item())[:3]))
            assert (cell == expected).all()


@pytest.mark.parametrize("columns", [[(0, 1), (1, 1)], [("a", 1), ("b", 1)], [("layer 1", 2)]])
def test_names_stand_beside_and_below(columns):
    """There is ink where the names are, and none without them; long names stand upright."""
    values = torch.ones(2, 2)
    bare = paint(Picture(values), TASKS)
    image = paint(Picture(values, [(0, 1), (1, 1)], columns), TASKS)
    assert image.shape[0] > bare.shape[0]
    left = image.shape[1] - bare.shape[1]
    assert left > 20
    beside, below = image[6:54, : left + 6], image[60:]
    assert all((half < INK).any() for half in (beside[:24], beside[24:], below))
    assert (below.shape[0] > 30) == (columns == [(0, 1), (1, 1)])


def test_wide_and_tall_pictures_stay_readable():
    image = paint(Picture(torch.zeros(300, 2000)), TASKS)
    assert image.shape[0] <= 420
    assert image.shape[1] >= 2000
