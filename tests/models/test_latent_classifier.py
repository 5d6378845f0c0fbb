"""The latent classifier: scores of codes, and steps as long as a face needs."""

import pytest
import torch

from faceedit.errors import UsageError
from faceedit.models.latent_classifier import LatentClassifier

ROWS, DIM = 3, 4
NAMES = ("smile", "beard", "gender")


def known(**options):
    """Score i is entry i of a code's first row, whatever the rest; goals are at 1 and 1."""
    model = LatentClassifier(NAMES, DIM, rows=2, hidden=3, **options).eval().requires_grad_(False)
    with torch.no_grad():
        for layer in (model.hidden[1], model.hidden[4], model.scores):
            layer.weight.zero_()
            layer.bias.zero_()
            for i in range(3):
                layer.weight[i, i] = 1
        # Far from zero, where the hidden layers are linear.
        model.hidden[1].bias.fill_(100)
        model.scores.bias.fill_(-100)
    model.goals.fill_(1.0)
    return model


def code(smile=0.0, beard=0.0, gender=0.0):
    """A code with these scores; what the classifier does not look at is not zero."""
    latents = torch.full((ROWS, DIM), 7.0)
    latents[0] = torch.tensor([smile, beard, gender, 3.0])
    return latents


def along(**entries):
    direction = torch.zeros(ROWS, DIM)
    for name, value in entries.items():
        direction[0, NAMES.index(name)] = value
    return direction


def test_scores_are_in_the_units_of_the_classifier_that_was_learned_from():
    model = known()
    torch.testing.assert_close(model(code(1.0, -2.0, 0.5)), torch.tensor([1.0, -2.0, 0.5]))
    assert model(torch.stack([code(), code(2.0)])).shape == (2, 3)
    model.latent_mean.fill_(1.0)
    model.latent_std.fill_(2.0)
    model.score_mean.copy_(torch.tensor([10.0, 20.0, 30.0]))
    model.score_std.fill_(4.0)
    torch.testing.assert_close(model(code(3.0, 1.0, 5.0)), torch.tensor([14.0, 20.0, 38.0]))


@pytest.mark.parametrize(("score", "sense", "expected"), [
    (0.0, 1, 0.5), (-2.0, 1, 1.5), (0.9, 1, 0.05), (0.0, -1, 0.5), (2.0, -1, 1.5), (-0.9, -1, 0.05),
])  # fmt: skip
def test_a_step_is_the_least_that_reaches_the_goal(score, sense, expected):
    model = known()
    model.shortest.fill_(0.01)
    assert model.step(code(smile=score), along(smile=2.0), "smile", sense) == pytest.approx(expected)


def test_the_two_senses_have_goals_of_their_own():
    model = known()
    model.goals[0] = torch.tensor([2.0, 0.0])
    assert model.step(code(), along(smile=2.0), "smile", 1) == pytest.approx(1.0)
    assert model.step(code(smile=1.0), along(smile=2.0), "smile", -1) == pytest.approx(0.5)


def test_who_wears_a_thing_already_needs_no_step():
    model = known()
    assert model.step(code(smile=0.2), along(smile=2.0), "smile", 1) == 0.0  # though the goal is at 1
    assert model.step(code(smile=-0.2), along(smile=2.0), "smile", -1) == pytest.approx(0.4)  # taken off all the same
    model.shortest[0] = 0.1
    assert model.step(code(smile=0.2), along(smile=2.0), "smile", 1) == pytest.approx(0.4)


def test_steps_lie_between_the_attributes_shortest_and_the_longest():
    model = known()
    model.longest[0] = 1.2
    assert model.step(code(smile=5.0), along(smile=2.0), "smile", 1) == 0.0
    model.shortest[0] = 0.4
    assert model.step(code(smile=5.0), along(smile=2.0), "smile", 1) == pytest.approx(0.4)
    assert model.step(code(smile=0.9), along(smile=2.0), "smile", 1) == pytest.approx(0.4)
    assert model.step(code(smile=-9.0), along(smile=2.0), "smile", 1) == pytest.approx(1.2)
    assert model.step(code(), along(beard=2.0), "smile", 1) == pytest.approx(1.2)  # never gets there


def test_faces_on_which_an_attribute_is_not_defined_take_the_directions_own_length():
    model = known(among={"beard": "gender"})
    assert model.step(code(gender=-1.0), along(beard=0.1), "beard", 1) == 1.0
    assert model.step(code(gender=1.0), along(beard=4.0), "beard", 1) == pytest.approx(0.25)
    model = known(among={"beard": "-gender"})
    assert model.step(code(gender=1.0), along(beard=4.0), "beard", 1) == 1.0
    assert model.step(code(gender=-1.0), along(beard=4.0), "beard", 1) == pytest.approx(0.25)


def test_strengths_are_taken_in_steps_of_the_face():
    model = known()
    directions = {"smile": along(smile=2.0), "beard": along(beard=1.0), "hat": along(gender=1.0)}
    applied = model.applied(code(smile=-2.0, beard=3.0), directions, {"smile": 0.5, "beard": -1.5, "hat": 2.0})
    assert applied == pytest.approx({"smile": 0.5 * 1.5, "beard": -1.5 * 2.0, "hat": 2.0})  # beard: the longest step
    assert model.applied(code(), directions, {"smile": 0.0}) == {"smile": 0.0}
    halves = [model.applied(code(), directions, {"smile": s})["smile"] for s in (0.5, 1.0)]
    assert halves[1] == pytest.approx(2 * halves[0])


def test_attributes_can_be_left_out():
    model = known(among={"beard": "gender"})
    model.goals[2] = torch.tensor([3.0, 4.0])
    other = model.without(["smile"])
    assert other.attributes == ("beard", "gender") and other.among == {"beard": "gender"}
    torch.testing.assert_close(other(code(1.0, 2.0, 3.0)), torch.tensor([2.0, 3.0]))
    assert other.goals.tolist() == [[1.0, 1.0], [3.0, 4.0]] and len(other.longest) == 2 and model.attributes == NAMES
    assert not any(p.requires_grad for p in other.parameters())
    assert model.without(["gender"]).among == {}
    again = LatentClassifier(other.attributes, DIM, **other.options)
    again.load_state_dict(other.state_dict())
    torch.testing.assert_close(again.eval()(code(1.0, 2.0, 3.0)), torch.tensor([2.0, 3.0]))


def test_an_owner_that_is_no_attribute_is_refused():
    with pytest.raises(UsageError, match="hat"):
        LatentClassifier(NAMES, DIM, among={"beard": "hat"})


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    model = LatentClassifier(NAMES, DIM, rows=2, hidden=16)
    model(torch.randn(8, ROWS, DIM)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
