"""Trust figures of maps that are right, wrong or empty by construction."""

import numpy as np
import pytest
import torch

from endofm_lab.errors import UserError
from endofm_lab.explain.attribution import Attribution, gradient_x_input
from endofm_lab.explain.targets import Target, target_of
from endofm_lab.explain.trust import (
    Curves,
    deletion_insertion,
    in_words,
    patches_of,
    pointing_game,
    pointing_intervals,
    randomisation_test,
    randomised,
    trust_steps,
)
from tests.explain.models import small_clip, small_model


@pytest.fixture(scope="module")
def model():
    return small_model()


def test_shuffled_weights_keep_their_numbers_and_lose_their_places(model):
    shuffled = randomised(model)
    for (name, before), after in zip(model.named_parameters(), shuffled.parameters(), strict=True):
        torch.testing.assert_close(before.flatten().sort().values, after.flatten().sort().values)
        if before.numel() > 50:
            assert not torch.equal(before, after), name


def test_a_map_that_ignores_the_model_is_found_out(model):
    """An edge detector looks plausible and knows nothing of the model."""

    def edges(network, clip, target):
        return Attribution(clip[0].sum(0).diff(dim=-1).abs().unfold(1, 16, 16).mean((-1, -2)), "edges", target.name)

    clip = small_clip()
    assert randomisation_test(model, clip, "finding", "polyp", edges) == pytest.approx(1.0)
    assert abs(randomisation_test(model, clip, "finding", "polyp", gradient_x_input, seeds=6)) < 0.6


def test_the_true_map_deletes_fast_and_inserts_fast(model):
    """The score is the light in one patch, so that patch is the whole truth."""
    clip = small_clip()
    clip[..., :16, :16] += 2
    target = Target("light", lambda clips: clips[:, :, 0, :16, :16].mean(dim=(1, 2, 3)))
    right, wrong = torch.zeros(4, 2, 2), torch.zeros(4, 2, 2)
    right[0, 0, 0], wrong[0, 0, 0] = 1, -1
    good, bad = (deletion_insertion(model, clip, target, v, "mean", steps=16) for v in (right, wrong))
    assert good.deletion[0] == pytest.approx(good.insertion[-1]) == pytest.approx(float(target.score(clip)))
    assert good.deletion[1] == pytest.approx(good.deletion[-1], abs=1e-5), "one sixteenth is all it takes"
    assert good.gap == pytest.approx(15 / 16, abs=0.02) and bad.gap == pytest.approx(-15 / 16, abs=0.02)
    assert bad.deletion[-2] > good.random_deletion[8] > good.deletion[1]


def test_pointing_by_hand():
    masks = np.zeros((3, 8, 8), bool)
    masks[0, :4, :4] = True  # the first of 2 x 2 patches
    masks[1, 4:, 4:] = True
    values = torch.zeros(3, 2, 2)
    values[0, 0, 0] = values[1, 0, 1] = 1.0
    game = pointing_game(values, masks)
    assert game.hits.tolist() == [1.0, 0.0], "the third frame shows nothing and does not count"
    assert game.random.tolist() == [0.25, 0.25] and game.centre.tolist() == [0.25, 0.25]
    assert pointing_game(torch.zeros(3, 2, 2), masks).hits.tolist() == [0.25, 0.25], "a flat map points everywhere"


def test_a_patch_needs_a_quarter_of_the_mask():
    masks = np.zeros((1, 8, 8), bool)
    masks[0, :2, :2] = True
    masks[0, 4:6, 4:5] = True
    assert patches_of(masks, (2, 2))[0].tolist() == [[True, False], [False, False]]


def test_intervals_are_over_patients():
    right, wrong = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[0.0, 1.0]]])
    mask = np.array([[[True, False]]])
    games = [(f"p{i}", pointing_game(right if i % 4 else wrong, mask)) for i in range(12)]
    intervals = pointing_intervals(games)
    assert intervals["map"].value == pytest.approx(0.75) and intervals["map"].units == 12
    assert intervals["map"].low < 0.75 < intervals["map"].high
    assert intervals["random"].value == intervals["random"].low == 0.5
    with pytest.raises(UserError, match="No frame shows a finding"):
        pointing_intervals([("p", pointing_game(right, ~mask & False))])
    with pytest.raises(UserError, match="1 frames, but there are 2 masks"):
        pointing_game(right, np.zeros((2, 1, 2), bool))


def test_both_tests_in_steps_give_the_same_figures():
    model, clip = small_model(), small_clip()
    head = next(name for name, spec in model.card.heads.items() if spec.answer == "clip")
    label = model.card.heads[head].classes[0]
    target = target_of(model, head, label)
    values = gradient_x_input(model, clip, target).values
    steps, counts = trust_steps(model, clip, head, label, gradient_x_input, values, seeds=2), []
    while True:
        try:
            counts.append(next(steps))
        except StopIteration as finished:
            curves, correlation = finished.value
            break
    assert counts == [(done, 7) for done in range(8)]
    plain = deletion_insertion(model, clip, target, values)
    np.testing.assert_array_equal(curves.insertion, plain.insertion)
    np.testing.assert_array_equal(curves.random_deletion, plain.random_deletion)
    assert correlation == randomisation_test(model, clip, head, label, gradient_x_input, seeds=2)


def test_the_figures_are_told_in_words():
    share, flat = np.linspace(0, 1, 3), np.array([1.0, 0.5, 0.0])
    good, none = (Curves(share, flat, insertion, flat) for insertion in (np.array([0.0, 1.0, 1.0]), flat))
    sentences = in_words(good, 0.05, None)
    assert (
        "somewhat better" in sentences[0]
        and "depends on what the model has learned" in sentences[1]
        and len(sentences) == 2
    )
    sentences = in_words(none, -0.9, 0.4)
    assert "no better than random patches" in sentences[0] and "nearly the same" in sentences[1]
    assert "does not sum to the score" in sentences[2]
