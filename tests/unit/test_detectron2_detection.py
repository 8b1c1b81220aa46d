"""What the adapter tells before anything is built; needs no Detectron2."""

import pickle
import re
import subprocess
import sys

import pytest
import torch
from detectron2_toys import NAMES, NEEDS, detector, window

from dal_dense.config import DetectionConfig, NetworkConfig, QueryConfig, TaskConfig, UncertaintyConfig
from dal_dense.config_task import CONVERT
from dal_dense.costs import PRESETS
from dal_dense.errors import MissingPackageError
from dal_dense.tasks.detectron2_detection import GUIDE, Detectron2Detection
from dal_dense.tasks.torchvision_detection import TorchvisionDetector


def adapter(name="retinanet", **detection):
    return Detectron2Detection(
        task=TaskConfig(
            name="detectron2_detection",
            metric="ap50",
            network=NetworkConfig(name=name),
            detection=DetectionConfig(**detection),
        ),
        uncertainty=UncertaintyConfig(),
        query=QueryConfig(sizes=((24, 32),)),
        costs=PRESETS["box_clicks"],
        classes=("background", "car"),
        ndim=2,
        in_channels=3,
        device=torch.device("cpu"),
        boxes_of=lambda record: None,
    )


def test_without_detectron2_the_guide_and_the_alternative_are_named(monkeypatch):
    for name in [n for n in sys.modules if n.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    with pytest.raises(MissingPackageError, match=f"{re.escape(GUIDE)}.*torchvision_detection"):
        adapter()


def test_without_what_detectron2_needs_the_extra_is_named(monkeypatch, tmp_path):
    for name in [n for n in sys.modules if n.split(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "detectron2", None)
    monkeypatch.delitem(sys.modules, "detectron2")  # so that the one below does not outlive this test
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2" / "__init__.py").write_text("")
    (tmp_path / "detectron2" / "modeling.py").write_text("import no_such_package_at_all")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(MissingPackageError, match=r"no_such_package_at_all.*\[detectron2\].*torchvision_detection"):
        adapter()


def test_the_modules_of_the_adapter_load_without_detectron2():
    """The door itself must open, so that the error can be told."""
    code = "import sys; sys.modules['detectron2'] = None; import dal_dense.tasks.detectron2_detection"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_what_is_said_to_convert_pickled_weights_works(tmp_path):
    weights = tmp_path / "model_final.pkl"
    tensors = {"model": {"stem.conv1.weight": torch.ones(2, 3).numpy()}, "__author__": "someone"}
    weights.write_bytes(pickle.dumps(tensors))
    script = CONVERT.split('"')[1]
    subprocess.run([sys.executable, "-c", script, str(weights), str(tmp_path / "out.pth")], check=True)
    found = torch.load(tmp_path / "out.pth", weights_only=True)
    assert torch.equal(found["stem.conv1.weight"], torch.ones(2, 3))


@pytest.mark.detectron2
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("backbone", ["tiny", "resnet18", "resnet50"])
@NEEDS[1]
def test_networks_from_settings(name, backbone):
    sizes = {"tiny": (16, 32), "resnet18": (16, 32, 64, 128, 256), "resnet50": (32, 64, 128, 256, 512)}[backbone]
    model = detector(name, backbone=backbone, anchor_sizes=sizes).module
    source = model.proposal_generator if name == "faster_rcnn" else model
    first = 8 if name != "faster_rcnn" and sizes[0] == 32 else 4
    assert model.input_format == "RGB"
    assert source.anchor_generator.strides == [first * 2**i for i in range(len(sizes))]
    assert torch.isfinite(torch.cat([p.flatten() for p in model.parameters()])).all()


@pytest.mark.detectron2
@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
@NEEDS[1]
def test_as_many_rows_are_sampled_as_by_torchvision(backbone):
    model = detector("faster_rcnn", backbone=backbone).module
    twin = TorchvisionDetector(NetworkConfig(name="faster_rcnn"), DetectionConfig(backbone=backbone), 4).module
    for own, other in ((model.roi_heads, twin.roi_heads), (model.proposal_generator, twin.rpn)):
        assert own.batch_size_per_image == other.fg_bg_sampler.batch_size_per_image
        assert own.positive_fraction == other.fg_bg_sampler.positive_fraction


@pytest.mark.detectron2
@NEEDS[1]
def test_the_same_seed_builds_the_same_network_whatever_the_norm():
    one, two, other = (detector("retinanet", seed=s).module.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[k], two[k]) for k in one) and any(not torch.equal(one[k], other[k]) for k in one)
    for name in NAMES:
        assert detector(name, norm="frozen", weights="trunk.pth").module is not None
        assert detector(name, norm="batch").losses([window()])
