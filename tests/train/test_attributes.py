"""The table of attributes: complete, unambiguous, and read with the right sign on the right faces."""

import torch

from faceedit.directions import ALIASES, Directions
from faceedit.train.attributes import ATTRIBUTES, related

# Names of CelebA's list_attr_celeba.txt that the table may use.
CELEBA = set(
    "Bald Bangs Black_Hair Blond_Hair Brown_Hair Eyeglasses Gray_Hair Heavy_Makeup Male Mouth_Slightly_Open "
    "Mustache Narrow_Eyes No_Beard Pale_Skin Smiling Wearing_Hat Wearing_Lipstick Young".split()
)


def test_every_attribute_measures_another_output_of_celeba():
    outputs = [attribute.output for attribute in ATTRIBUTES.values()]
    assert len(set(outputs)) == len(outputs) == 18
    assert {*outputs, *(a.among.removeprefix("-") for a in ATTRIBUTES.values() if a.among)} <= CELEBA
    assert all(a.sign in (1, -1) and a.sense and a.description for a in ATTRIBUTES.values())
    assert list(ATTRIBUTES)[:5] == ["smile", "age", "gender", "glasses", "beard"]


def test_names_and_aliases_make_one_valid_set_of_directions():
    directions = Directions(
        {name: torch.zeros(2, 3) for name in ATTRIBUTES},
        aliases={name: attribute.aliases for name, attribute in ATTRIBUTES.items()},
    )
    assert directions.resolve("Blonde") == "blond_hair" and directions.resolve("mustache") == "moustache"
    assert {name: ATTRIBUTES[name].aliases for name in ALIASES} == dict(ALIASES)


def test_score_and_masks_follow_sign_and_condition():
    names = ("Male", "No_Beard")
    logits = torch.tensor([[1.0, 2.0], [1.0, -2.0], [-1.0, 2.0], [-1.0, -2.0]])
    beard = ATTRIBUTES["beard"]
    assert beard.score(logits, names).tolist() == [-2, 2, -2, 2]
    assert beard.defined(logits, names).tolist() == [True, True, False, False]
    assert beard.lacking(logits, names).tolist() == [True, False, False, False]
    assert beard.lacking(logits, names, -1).tolist() == [False, True, False, False]
    assert ATTRIBUTES["gender"].defined(logits, names).all()


def test_related_is_symmetric_and_names_only_what_labels_tie():
    assert related("black_hair", "blond_hair") and related("blond_hair", "black_hair")
    assert related("beard", "gender") and related("gender", "beard")
    assert not related("beard", "bald") and not related("smile", "mouth_open") and not related("age", "age")


def test_an_attribute_can_be_defined_among_those_without_another():
    names, logits = ("Male", "Heavy_Makeup"), torch.tensor([[2.0, -1.0], [-2.0, -1.0], [-2.0, 1.0]])
    makeup = ATTRIBUTES["makeup"]
    assert makeup.defined(logits, names).tolist() == [False, True, True]
    assert makeup.lacking(logits, names).tolist() == [False, True, False]
    assert makeup.lacking(logits, names, -1).tolist() == [False, False, True]


def test_what_an_attribute_moves_with_are_outputs_and_its_own():
    more = set(
        "5_o_Clock_Shadow Arched_Eyebrows Attractive Bags_Under_Eyes Big_Lips Big_Nose Blurry Bushy_Eyebrows Chubby "
        "Double_Chin Goatee High_Cheekbones Oval_Face Pointy_Nose Receding_Hairline Rosy_Cheeks Sideburns Straight_Hair "
        "Wavy_Hair Wearing_Earrings Wearing_Necklace Wearing_Necktie".split()
    )
    assert len(CELEBA | more) == 40
    for attribute in ATTRIBUTES.values():
        assert attribute.moves_with - {""} <= CELEBA | more and attribute.output in attribute.moves_with
    assert "Smiling" not in ATTRIBUTES["glasses"].moves_with
