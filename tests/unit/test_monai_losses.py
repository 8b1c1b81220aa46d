import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as nnf

from dal_dense.tasks.monai_losses import dice_ce


def case(seed: int, classes: int = 4, ignored: float = 0.4):
    gen = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, classes, 5, 6, 4, generator=gen)
    label = torch.randint(0, classes, (2, 5, 6, 4), generator=gen).to(torch.uint8)
    label[torch.rand(label.shape, generator=gen) < ignored] = 255
    return logits.requires_grad_(), label


@pytest.mark.parametrize("background", [True, False])
def test_equals_monai_dice_and_torch_cross_entropy(background):
    logits, label = case(0)
    dice = DiceLoss(ignore_index=255, to_onehot_y=True, softmax=True, batch=True, include_background=not background)(
        logits, label[:, None].long()
    )
    cross = nnf.cross_entropy(logits, label.long(), ignore_index=255)
    assert dice_ce(logits, label, background=background).item() == pytest.approx((dice + cross).item(), abs=1e-5)


def test_gradient_is_exactly_zero_where_nothing_is_labelled():
    logits, label = case(1)
    dice_ce(logits, label, background=True).backward()
    grad = logits.grad.abs().sum(1)
    assert (grad[label == 255] == 0).all()
    assert (grad[label != 255] > 0).all()


def test_what_lies_under_ignored_ground_does_not_matter():
    logits, label = case(2)
    other = logits.detach().clone()
    other.permute(0, 2, 3, 4, 1)[label == 255] += 50.0
    assert dice_ce(logits, label, background=True).item() == dice_ce(other, label, background=True).item()


def test_a_class_that_is_not_labelled_has_no_dice_term():
    logits, label = case(3)
    label[label == 2] = 1
    present = DiceLoss(ignore_index=255, to_onehot_y=True, softmax=True, batch=True, reduction="none")(
        logits, label[:, None].long()
    ).flatten()[[1, 3]]
    cross = nnf.cross_entropy(logits, label.long(), ignore_index=255)
    assert dice_ce(logits, label, background=True).item() == pytest.approx((present.mean() + cross).item(), abs=1e-5)


@pytest.mark.parametrize("fill", [255, 0])
def test_a_batch_without_labels_or_foreground_is_no_nan(fill):
    logits, label = case(4)
    label.fill_(fill)
    loss = dice_ce(logits, label, background=True)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(logits.grad).all()
    assert (loss.item() == 0) == (fill == 255)
