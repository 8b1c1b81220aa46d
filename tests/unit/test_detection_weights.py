"""Weights from a user's file, and settings that cannot be built."""

import pickle
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn, retinanet_resnet50_fpn

from dal_dense.boxes import Boxes
from dal_dense.config import DetectionConfig, NetworkConfig, QueryConfig, TaskConfig, TrainConfig, UncertaintyConfig
from dal_dense.costs import PRESETS
from dal_dense.errors import DataError
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.detection_backend import Rows
from dal_dense.tasks.detection_difficulty import qualities
from dal_dense.tasks.detection_ground import Sample
from dal_dense.tasks.detection_partial import area_table
from dal_dense.tasks.detection_task import Detection
from dal_dense.tasks.torchvision_detection import PREFIXES, TorchvisionDetection
from dal_dense.tasks.torchvision_networks import build_network
from dal_dense.tasks.weights import read_foreign, take_matching

sys.path.insert(0, str(Path(__file__).parent))
from toy_frames import FRAME, OBJECTS, labelled, toy_frame

PAPER = {"backbone": "resnet50", "anchor_sizes": (32, 64, 128, 256, 512), "norm": "frozen", "weights": "any"}


@pytest.mark.parametrize(
    ("name", "stock"),
    [("faster_rcnn", fasterrcnn_resnet50_fpn), ("retinanet", retinanet_resnet50_fpn), ("fcos", fcos_resnet50_fpn)],
)
def test_torchvisions_own_weights_fit(name: str, stock: object) -> None:
    with torch.device("meta"):
        state = stock(weights=None, weights_backbone=None, num_classes=91).state_dict()  # type: ignore[operator]
        network = build_network(NetworkConfig(name=name), DetectionConfig(**PAPER), 91)
    own = network.state_dict()
    matched = {k for k, v in state.items() if k in own and own[k].shape == v.shape}
    assert len(own.keys() - matched) == 0
    assert not {k for k in state.keys() - matched if not k.endswith("num_batches_tracked")}


def fcos_task(truth: Boxes | None = None, **detection: object) -> Detection:
    return TorchvisionDetection(
        task=TaskConfig(
            name="torchvision_detection", network=NetworkConfig(name="fcos"), metric="ap50",
            detection=DetectionConfig(backbone="resnet18", **detection),
            train=TrainConfig(iterations=1, batch=1, patch=(32, 32)),
        ),
        uncertainty=UncertaintyConfig(), query=QueryConfig(sizes=((16, 16),)), costs=PRESETS["box_clicks"],
        classes=OBJECTS, ndim=2, in_channels=3, device=torch.device("cpu"), boxes_of=lambda record: truth,
    )  # fmt: skip


def fitted(tmp_path: Path, weights: Path, **more: object) -> dict[str, float]:
    record, truth = toy_frame(tmp_path, "img", 0)
    task = fcos_task(truth, weights=str(weights), **more)
    said: list[tuple[str, int, int]] = []
    known = labelled(record, truth, [((0, 0), FRAME)], ("image",))
    hooks = Hooks(lambda what, done, total: said.append((what, done, total)))
    report = task.fit([known], seed=0, out=tmp_path / "fit", previous=None, hooks=hooks)
    assert any(weights.name in what and done == report.figures["weights_matched"] for what, done, _ in said)
    return report.figures


def test_a_classifier_becomes_the_trunk(tmp_path: Path) -> None:
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "r18.pth")
    assert fitted(tmp_path, tmp_path / "r18.pth", norm="frozen")["weights_matched"] == 100  # all but fc and counters
    convolutions = {k: v for k, v in state.items() if v.ndim == 4}
    save_file(convolutions, tmp_path / "r18.safetensors")
    assert fitted(tmp_path, tmp_path / "r18.safetensors")["weights_matched"] == len(convolutions)


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (print, ("a pickle was executed",))


def test_files_that_cannot_be_used_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "trap.pth").write_bytes(pickle.dumps(Trap(), protocol=2))
    torch.save({"model": Trap()}, tmp_path / "zip.pth")
    (tmp_path / "short.safetensors").write_bytes(b"short")
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("trap.pth", "zip.pth", "short.safetensors", "list.pth", "absent.pth"):
        with pytest.raises(DataError, match=rf"task\.detection\.weights .*{name}.*safetensors file"):
            read_foreign(tmp_path / name)
    assert "executed" not in capsys.readouterr().out
    network = build_network(NetworkConfig(name="fcos"), DetectionConfig(backbone="tiny"), 3)
    with pytest.raises(DataError, match="none of its 1 tensors"):
        take_matching(network, {"nobody.weight": torch.zeros(3)}, tmp_path / "other.pth", PREFIXES)


def test_what_cannot_be_begun_with_is_told_before_anybody_labels(tmp_path: Path) -> None:
    torch.save({"nobody.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(DataError, match="none of its 1 tensors"):
        fcos_task(weights=str(tmp_path / "other.pth"))
    state = torch.get_rng_state()
    fcos_task()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("norm", ["group", "batch"])
@pytest.mark.parametrize("name", ["faster_rcnn", "retinanet", "fcos"])
def test_levels_follow_the_anchors(name: str, norm: str) -> None:
    for sizes, strides in (((16, 32, 64), (4, 8, 16)), ((32, 64, 128, 256, 512), (8, 16, 32, 64, 128))):
        network = build_network(NetworkConfig(name=name), DetectionConfig(anchor_sizes=sizes, norm=norm), 3)
        expected = tuple(4 * 2**i for i in range(len(sizes))) if name == "faster_rcnn" else strides
        assert network.backbone.strides == expected


def test_quality_of_an_object_is_ppals() -> None:
    sample = Sample(
        torch.zeros(3, 20, 20), torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([2]), torch.zeros(0, 4),
        area_table(torch.ones(20, 20, dtype=torch.bool)), area_table(torch.zeros(20, 20, dtype=torch.bool)),
    )  # fmt: skip
    rows = Rows(
        torch.tensor([[0.1, 0.8, 0.1], [0.3, 0.2, 0.5]]), torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]]),
        torch.zeros(2, 1),
    )  # fmt: skip
    assert torch.allclose(qualities(rows, sample), torch.tensor([max(0.1**0.6, 0.5**0.6 * 0.5**0.4)]))
    none = Rows(rows.probs[:0], rows.boxes[:0], rows.embedding[:0])
    assert qualities(none, sample).tolist() == [0]
