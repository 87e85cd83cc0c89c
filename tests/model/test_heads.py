import pytest
import torch
from torch.nn import functional as F

from endofm_lab.model.card import HeadSpec
from endofm_lab.model.encoder import VideoTokens
from endofm_lab.model.heads import HEADS, BoxHead, ClipClassifier, IouBoxHead, MaskHead
from endofm_lab.model.paper.hybrid import HybridTransformer
from endofm_lab.model.transformer import build_backbone
from endofm_lab.model.video_model import build_head


@pytest.fixture
def tokens():
    random = torch.Generator().manual_seed(0)
    return VideoTokens(torch.randn(2, 32, generator=random), torch.randn(2, 3, 4, 5, 32, generator=random))


def test_heads_give_the_shapes_that_they_promise(tokens):
    assert ClipClassifier(32, 7)(tokens).shape == (2, 7)
    assert MaskHead(32, 2)(tokens).shape == (2, 2, 3, 16, 20)
    assert BoxHead(32, 3)(tokens).shape == (2, 7, 3, 4, 5)


@pytest.mark.parametrize("head", [ClipClassifier(32, 2), MaskHead(32), BoxHead(32)], ids=["class", "mask", "box"])
def test_a_batch_of_two_equals_two_batches_of_one(tokens, head):
    singles = [head(VideoTokens(tokens.cls[i : i + 1], tokens.patches[i : i + 1])) for i in range(2)]
    torch.testing.assert_close(head(tokens), torch.cat(singles), atol=1e-6, rtol=1e-5)


def test_the_mask_of_a_frame_comes_from_the_tokens_of_that_frame(tokens):
    head = MaskHead(32)
    before = head(tokens)
    patches = tokens.patches.clone()
    patches[:, 1] += 1
    after = head(VideoTokens(tokens.cls, patches))
    assert torch.equal(before[:, :, [0, 2]], after[:, :, [0, 2]])
    assert not torch.equal(before[:, :, 1], after[:, :, 1])


def test_class_loss_is_softmax_for_indices_and_sigmoid_for_indicators():
    head = ClipClassifier(4, 2)
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    assert head.loss(logits, {"target": torch.tensor([0, 1])}) == F.cross_entropy(logits, torch.tensor([0, 1]))
    indicators = torch.tensor([[1, 1], [0, 0]])
    p = logits.sigmoid()
    by_hand = -(p[0].log().sum() + (1 - p[1]).log().sum()) / 4
    torch.testing.assert_close(head.loss(logits, {"target": indicators}), by_hand)


def test_mask_loss_is_zero_for_a_sure_right_mask_also_if_it_is_empty():
    truth = torch.zeros(1, 1, 2, 8, 8)
    truth[..., 2:6, 2:6] = 1
    sure = (truth * 2 - 1) * 40
    head = MaskHead(32)
    assert head.loss(sure, {"mask": truth}) < 1e-4
    assert head.loss(torch.full_like(truth, -40), {"mask": torch.zeros_like(truth)}) < 1e-4
    assert head.loss(-sure, {"mask": truth}) > 10


def perfect(head, box, label, grid=(6, 8)):
    """Raw output that draws ``box`` (fractions) at every patch that belongs to it, and nothing elsewhere.

    A patch belongs to the box if its centre lies in the middle half of it: the rule of `BoxHead.loss`, by hand.
    """
    h, w = grid
    raw = torch.full((1, head.n_classes + 4, 1, h, w), -12.0)
    for row in range(h):
        for column in range(w):
            x, y = column + 0.5, row + 0.5
            sides = [x - box[0] * w, y - box[1] * h, box[2] * w - x, box[3] * h - y]
            off_x, off_y = abs(sides[0] - sides[2]) / 2, abs(sides[1] - sides[3]) / 2  # from the box's centre
            if off_x <= max((box[2] - box[0]) * w / 4, 0.5) and off_y <= max((box[3] - box[1]) * h / 4, 0.5):
                raw[0, label, 0, row, column] = 12.0
                raw[0, head.n_classes :, 0, row, column] = torch.tensor(sides).log()
    return raw


def test_boxes_are_decoded_to_the_box_that_was_drawn():
    head, box = BoxHead(16, 2), [0.2, 0.3, 0.7, 0.8]
    ((xyxy, score, label),) = head.decode(perfect(head, box, 1))[0]
    assert len(xyxy) == 1, "non-maximum suppression leaves one of the equal boxes"
    torch.testing.assert_close(xyxy[0], torch.tensor(box), atol=1e-5, rtol=0)
    assert score[0] > 0.89 and label[0] == 1


def test_box_loss_falls_from_a_wrong_to_a_right_answer_and_is_small_for_an_empty_frame():
    head, box = BoxHead(16, 2), [0.2, 0.3, 0.7, 0.8]
    truth = torch.tensor(box)[None, None, None]
    right = head.loss(perfect(head, box, 1), {"boxes": truth, "labels": torch.tensor([[[1]]])})
    moved = head.loss(perfect(head, [0.3, 0.4, 0.9, 0.95], 1), {"boxes": truth, "labels": torch.tensor([[[1]]])})
    other_class = head.loss(perfect(head, box, 0), {"boxes": truth, "labels": torch.tensor([[[1]]])})
    assert right < 0.5 * moved
    assert right < 0.1 * other_class
    empty = torch.full((1, 6, 1, 6, 8), -12.0)
    missing = torch.full((1, 1, 1, 4), torch.nan)
    assert head.loss(empty, {"boxes": missing, "labels": torch.tensor([[[-1]]])}) < 1e-4


def test_where_boxes_overlap_a_patch_belongs_to_the_smaller_one():
    head = BoxHead(16, 2)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.4, 0.35, 0.65, 0.7]])[None, None]
    labels = torch.tensor([[[0, 1]]])
    small = perfect(head, [0.4, 0.35, 0.65, 0.7], 1)
    big = perfect(head, [0.0, 0.0, 1.0, 1.0], 0)
    inside = small[:, 1:2] > 0
    combined = torch.where(inside, small, big)
    assert head.loss(combined, {"boxes": boxes, "labels": labels}) < head.loss(big, {"boxes": boxes, "labels": labels})


def test_every_parameter_of_every_head_receives_a_gradient(tokens):
    truth_box = torch.tensor([0.1, 0.1, 0.6, 0.9]).expand(2, 3, 1, 4)
    for head, batch in (
        (ClipClassifier(32, 2), {"target": torch.tensor([0, 1])}),
        (MaskHead(32), {"mask": torch.ones(2, 1, 3, 32, 40)}),
        (BoxHead(32), {"boxes": truth_box, "labels": torch.zeros(2, 3, 1, dtype=torch.long)}),
    ):
        head.loss(head(tokens), batch).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize(("kind", "variant"), HEADS)
def test_every_head_of_the_table_keeps_the_contract(kind, variant):
    backbone = build_backbone("micro")
    if variant == "transunet":
        backbone = HybridTransformer.around(backbone, stem_width=32, stem_units=(1, 1, 1))
    options = {"pooling" if kind.startswith("multi") else "form": variant} if variant else {}
    spec = HeadSpec(kind, ("a", "b"), **options, **({"channels": 16} if variant == "stft" else {}))
    head = build_head(spec, backbone.eval(), 64).eval()
    batch = {
        "target": torch.tensor([[0, 1]]) if kind == "multilabel" else torch.tensor([1]),
        "mask": torch.zeros(1, 2, 2, 64, 64),
        "boxes": torch.tensor([0.1, 0.2, 0.6, 0.7]).expand(1, 2, 1, 4),
        "labels": torch.zeros(1, 2, 1, dtype=torch.long),
    }
    logits = head(backbone(torch.randn(1, 3, 2, 64, 64)))
    assert head.loss(logits, batch).shape == () and head.loss(logits, batch).requires_grad
    assert head.evidence(logits, 1, spec).shape == (1,)
    scores = head.scores(logits.detach(), spec)
    assert scores.shape == logits.shape and spec.answer == head.answer
    if head.answer == "boxes":
        assert [len(frames) for frames in head.decode(scores)] == [2]
    else:
        assert scores.ndim == (2 if head.answer == "clip" else 5) and ((scores >= 0) & (scores <= 1)).all()


def test_scores_of_fit_are_trained_to_be_the_overlap():
    torch.manual_seed(0)
    head = IouBoxHead(32)
    boxes = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.2, 0.2, 0.4, 0.4], [0.0, 0.0, 0.1, 0.1]])
    truth = torch.tensor([[0.0, 0.0, 0.5, 1.0], [0.2, 0.2, 0.4, 0.4], [0.5, 0.5, 1.0, 1.0]])
    torch.testing.assert_close(head.worth(boxes, truth), torch.tensor([0.5, 1.0, 0.0]))
    target = torch.tensor([0.0, 0.3, 1.0])
    right = torch.logit(target.clamp(1e-6, 1 - 1e-6))
    assert head.class_loss(right, target) < 1e-9
    for shift in (-1.0, 1.0):
        assert head.class_loss(right + shift, target) > 1e-3


def test_a_head_with_scores_of_fit_learns_a_box_and_its_plain_sister_has_the_focal_loss():
    torch.manual_seed(0)
    raw = torch.randn(2, 5, 1, 4, 4)
    boxes = torch.tensor([[[[0.1, 0.1, 0.6, 0.7]]], [[[float("nan")] * 4]]])
    batch = {"boxes": boxes, "labels": torch.zeros(2, 1, 1, dtype=torch.long)}
    losses = []
    for kind in (BoxHead, IouBoxHead):
        head, learned = kind(32), raw.clone().requires_grad_()
        optimiser = torch.optim.Adam([learned], lr=0.05)
        for _ in range(300):
            loss = head.loss(learned, batch)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        losses.append(float(loss.detach()))
        best, score, _ = head.decode(learned.detach()[:1], max_boxes=1)[0][0]
        torch.testing.assert_close(best[0], boxes[0, 0, 0], atol=0.02, rtol=0)
        assert score[0] > 0.8
    assert losses[0] != losses[1]
