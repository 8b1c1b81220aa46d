"""A user's own Detectron2 config and weights."""

import pytest
import torch
from detectron2_toys import NEEDS, picture, window
from safetensors.torch import save_file
from toy_frames import FRAME, OBJECTS, labelled, toy_frame

from dal_dense.config import DetectionConfig, NetworkConfig, QueryConfig, TaskConfig, TrainConfig, UncertaintyConfig
from dal_dense.costs import PRESETS
from dal_dense.errors import ConfigError
from dal_dense.tasks.base import Hooks
from dal_dense.tasks.detectron2_detection import PREFIXES, Detectron2Detection, make_detector
from dal_dense.tasks.weights import read_foreign, take_matching

pytestmark = NEEDS

BASE = """
MODEL:
  META_ARCHITECTURE: RetinaNet
  BACKBONE: {NAME: build_retinanet_resnet_fpn_backbone, FREEZE_AT: 0}
  RESNETS: {DEPTH: 18, NORM: BN, RES2_OUT_CHANNELS: 64, OUT_FEATURES: [res3, res4, res5]}
  FPN: {IN_FEATURES: [res3, res4, res5], OUT_CHANNELS: 32}
  RETINANET: {NUM_CLASSES: 80, NUM_CONVS: 1}
  WEIGHTS: detectron2://somewhere.pkl
  DEVICE: cuda
  ANCHOR_GENERATOR:
    SIZES: !!python/object/apply:eval ["[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [16, 32, 64, 128, 256]]"]
DATASETS:
  TRAIN: ("coco_2017_train",)
VERSION: 2
"""

RCNN = """
_BASE_: base.yaml
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: True
  BACKBONE: {NAME: build_resnet_fpn_backbone}
  RESNETS: {OUT_FEATURES: [res2, res3, res4, res5]}
  FPN: {IN_FEATURES: [res2, res3, res4, res5]}
  ANCHOR_GENERATOR: {SIZES: [[32], [64], [128], [256], [512]]}
  RPN: {IN_FEATURES: [p2, p3, p4, p5, p6], PRE_NMS_TOPK_TEST: 100, POST_NMS_TOPK_TEST: 50}
  ROI_HEADS: {NAME: StandardROIHeads, IN_FEATURES: [p2, p3, p4, p5]}
  ROI_BOX_HEAD: {NAME: FastRCNNConvFCHead, NUM_FC: 1, FC_DIM: 64, POOLER_RESOLUTION: 7, USE_SIGMOID_CE: %s}
"""

LAZY = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, ResNet, RetinaNet
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

model = L(RetinaNet)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="nnSyncBN"),
            stages=L(ResNet.make_default_stages)(depth=18, norm="nnSyncBN"),
            out_features=["res3", "res4"],
        ),
        in_features=["res3", "res4"],
        out_channels=32,
    ),
    head=L(RetinaNetHead)(
        input_shape=[ShapeSpec(channels=32)] * 2, num_classes="${..num_classes}", conv_dims=[32], num_anchors=2
    ),
    anchor_generator=L(DefaultAnchorGenerator)(sizes=[[32, 48], [64, 96]], aspect_ratios=[1.0], strides=[8, 16]),
    box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
    anchor_matcher=L(Matcher)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality_matches=True),
    num_classes=80,
    head_in_features=["p3", "p4"],
    pixel_mean=[120.0, 120.0, 120.0],
    pixel_std=[60.0, 60.0, 60.0],
    input_format="RGB",
)
"""

LAZY_FCOS = """
from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling import FCOS, FPN, ResNet
from detectron2.modeling.backbone import BasicStem
from detectron2.modeling.meta_arch.fcos import FCOSHead

model = L(FCOS)(
    backbone=L(FPN)(
        bottom_up=L(ResNet)(
            stem=L(BasicStem)(in_channels=3, out_channels=64, norm="BN"),
            stages=L(ResNet.make_default_stages)(depth=18, norm="BN"),
            out_features=["res3", "res4"],
        ),
        in_features=["res3", "res4"],
        out_channels=32,
    ),
    head=L(FCOSHead)(
        input_shape=[ShapeSpec(channels=32)] * 2, num_classes="${..num_classes}", conv_dims=[32], norm="GN"
    ),
    head_in_features=["p3", "p4"],
    num_classes=80,
    test_score_thresh=0.7,
    test_topk_candidates=50,
    pixel_mean=[103.0, 116.0, 123.0],
    pixel_std=[57.0, 57.0, 58.0],
)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "base.yaml").write_text(BASE)
    (tmp_path / "rcnn.yaml").write_text(RCNN % False)
    (tmp_path / "sigmoid.yaml").write_text(RCNN % True)
    (tmp_path / "lazy.py").write_text(LAZY)
    (tmp_path / "lazy_fcos.py").write_text(LAZY_FCOS)
    return tmp_path


def built(path, name="retinanet", classes=4, **more):
    torch.manual_seed(0)
    return make_detector(NetworkConfig(name=name), DetectionConfig(config_file=str(path), **more), classes)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("base.yaml", "retinanet"),
        ("rcnn.yaml", "faster_rcnn"),
        ("sigmoid.yaml", "faster_rcnn"),
        ("lazy.py", "retinanet"),
        ("lazy_fcos.py", "fcos"),
    ],
)
def test_a_users_config_trains_and_predicts(folder, file, name):
    found = built(folder / file, name)
    losses = found.losses([window(boxes=[(10, 10, 50, 50)], classes=[3]), window(seed=1)])
    sum(losses.values()).backward()
    assert all(torch.isfinite(v.detach()) for v in losses.values())
    assert not {k for k in losses if "mask" in k}
    look = found.look(picture())
    rows = found.rows(look)
    assert rows.probs.shape[1] == 4 and len(rows.probs) > 5
    assert torch.allclose(rows.probs.sum(1), torch.ones(len(rows.probs)), atol=1e-5)
    turned = found.rows(found.look(picture(), like=look, flip=True))
    assert turned.boxes.shape == rows.boxes.shape
    assert not torch.equal(next(found.draws(look, [1])).probs, rows.probs)


def test_what_the_file_says_stays_but_for_what_is_ours(folder):
    model = built(folder / "base.yaml", min_score=0.2, nms_iou=0.4, max_boxes=7).module
    assert model.num_classes == 3 and model.head.cls_score.out_channels == 27
    assert (model.test_score_thresh, model.test_nms_thresh, model.max_detections_per_image) == (0.2, 0.4, 7)
    sizes = [c[:, 2].sub(c[:, 0]).max().item() for c in model.anchor_generator.cell_anchors]
    assert sizes[0] == pytest.approx(16 * 2 ** (2 / 3) * 2**0.5, rel=1e-5) and len(sizes) == 5
    own = built(folder / "base.yaml", anchor_sizes=(8, 16, 32, 64, 128)).module
    assert own.head.cls_score.out_channels == 27  # as many steps of an octave as the file has
    assert next(iter(own.anchor_generator.cell_anchors))[:, 2].max() == pytest.approx(
        8 * 2 ** (2 / 3) * 2**0.5 / 2, rel=1e-5
    )
    fcos = built(folder / "lazy_fcos.py", "fcos", min_score=0.2).module
    assert fcos.num_classes == fcos.head.cls_score.out_channels == 3
    assert (fcos.test_score_thresh, fcos.test_topk_candidates) == (0.2, 50)
    lazy = built(folder / "lazy.py", anchor_sizes=(8, 16)).module
    assert list(lazy.anchor_generator.cell_anchors)[1][:, 2].tolist() == pytest.approx([8, 8 * 2**0.5])


def test_channels_come_in_the_files_order(folder):
    """Detectron2's default is BGR; our frames are RGB."""
    for file, name, order in (
        ("rcnn.yaml", "faster_rcnn", [2, 1, 0]),
        ("lazy.py", "retinanet", [0, 1, 2]),
        ("lazy_fcos.py", "fcos", [2, 1, 0]),
    ):
        found, image, taken = built(folder / file, name), picture(), []
        found.module.backbone.register_forward_pre_hook(lambda module, x, taken=taken: taken.append(x[0]))
        found.look(image)
        with torch.no_grad():
            found.module([{"image": image[order]}])
        found.losses([window(boxes=[(10, 10, 50, 50)], classes=[1])])  # of the same picture
        assert taken[0].shape == taken[2].shape and torch.equal(taken[0], taken[1]) and torch.equal(taken[0], taken[2])


def test_a_yaml_file_is_never_run(folder):
    proof = folder / "was_run"
    for text in (
        f"MODEL: !!python/object/apply:eval [\"open('{proof}', 'w')\"]",
        f"MODEL: !!python/object/apply:os.mkdir ['{proof}']",
        "MODEL: !!python/object/apply:eval ['[x for x in (1).__class__.__mro__]']",
        "MODEL: !!python/object/apply:eval ['2 ** 10 ** 10 ** 10']",
    ):
        (folder / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match="plain yaml"):
            built(folder / "bad.yaml")
    assert not proof.exists()


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("MODEL: {NO_SUCH: 1}", "NO_SUCH"),
        ("- 1", "holds no settings"),
        ("VERSION: 1", "VERSION 1, expected 2"),
        ("_BASE_: gone.yaml", "gone.yaml cannot be read"),
        ("_BASE_: ./bad.yaml", "bad.yaml is its own _BASE_"),
        ("MODEL: {META_ARCHITECTURE: FCOS}", r"describes FCOS.*LazyConfig \(\.py\) only"),
        ("MODEL: {META_ARCHITECTURE: PanopticFPN}", "describes PanopticFPN"),
        ("_BASE_: rcnn.yaml\nMODEL: {ROI_HEADS: {NAME: CascadeROIHeads}, ROI_BOX_HEAD: {CLS_AGNOSTIC_BBOX_REG: True}}",
         "RPN and CascadeROIHeads"),
        ("_BASE_: rcnn.yaml", "task.network.name: retinanet, but .* describes GeneralizedRCNN; write faster_rcnn"),
        ("_BASE_: base.yaml\nMODEL: {RESNETS: {NORM: FrozenBN}}", "task.detection.weights: null, but .* freezes batch"),
        ("_BASE_: base.yaml\nINPUT: {FORMAT: L}", "input format L"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_told(folder, text, match):
    (folder / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=match):
        built(folder / "bad.yaml")


def test_wrong_files_are_told(folder):
    with pytest.raises(ConfigError, match="is not there"):
        built(folder / "gone.yaml")
    (folder / "empty.py").write_text("train = dict(a=1)")
    with pytest.raises(ConfigError, match="defines no `model`"):
        built(folder / "empty.py")
    (folder / "other.py").write_text(
        "from detectron2.config import LazyCall as L\n"
        "from detectron2.modeling import ProposalNetwork\nmodel = L(ProposalNetwork)()\n"
    )
    with pytest.raises(ConfigError, match=r"describes ProposalNetwork.*RetinaNet or FCOS"):
        built(folder / "other.py")
    with pytest.raises(ConfigError, match=r"retinanet, but .* describes FCOS; write fcos"):
        built(folder / "lazy_fcos.py")
    with pytest.raises(ConfigError, match=r"lazy_fcos\.py has points and no anchors.*leave the setting out"):
        built(folder / "lazy_fcos.py", "fcos", anchor_sizes=(8, 16))
    with pytest.raises(ConfigError, match=r"3 sizes, but base\.yaml has 5 levels"):
        built(folder / "base.yaml", anchor_sizes=(8, 16, 32))


def test_a_fit_is_of_its_config_and_of_all_that_lies_under_it(folder):
    """A file under `_BASE_` of `_BASE_` is changed: the fit is begun anew, and not before."""
    from dal_dense.tasks.detectron2_configs import files_of

    (folder / "mine.yaml").write_text("_BASE_: rcnn.yaml\n")
    assert [p.name for p in files_of(folder / "mine.yaml")] == ["base.yaml", "rcnn.yaml", "mine.yaml"]
    record, truth = toy_frame(folder, "img", 0)
    known = labelled(record, truth, [((0, 0), FRAME)], ("image",))

    def steps():
        task = Detectron2Detection(
            task=TaskConfig(
                name="detectron2_detection",
                metric="ap50",
                network=NetworkConfig(name="faster_rcnn"),
                detection=DetectionConfig(config_file=str(folder / "mine.yaml")),
                train=TrainConfig(iterations=1, batch=1, patch=(64, 64)),
            ),
            uncertainty=UncertaintyConfig(),
            query=QueryConfig(sizes=((24, 32),)),
            costs=PRESETS["box_clicks"],
            classes=OBJECTS,
            ndim=2,
            in_channels=3,
            device=torch.device("cpu"),
            boxes_of=lambda record: None,
        )
        calls = []
        hooks = Hooks(lambda what, done, total: calls.append(what))
        task.fit([known], seed=0, out=folder / "fit", previous=None, hooks=hooks)
        return calls.count("fit")

    assert [steps(), steps()] == [1, 0]
    (folder / "base.yaml").write_text(BASE.replace("DEPTH: 18", "DEPTH: 34"))
    assert [steps(), steps()] == [1, 0]


def test_weights_of_other_classes_fit_but_for_the_last_layer(folder):
    """A .pth as Detectron2's checkpointer writes it, with its optimiser; and a trunk alone, as safetensors."""
    other = built(folder / "rcnn.yaml", "faster_rcnn", classes=81).module.state_dict()
    torch.save({"model": other, "iteration": 9, "optimizer": {"lr": 0.1}}, folder / "model.pth")
    found = built(folder / "rcnn.yaml", "faster_rcnn").module
    taken = take_matching(found, read_foreign(folder / "model.pth"), folder / "model.pth", PREFIXES)
    assert taken == len(found.state_dict()) - 4  # weight and bias of both last layers
    trunk = {k.removeprefix("backbone.bottom_up."): v.clone() + 1 for k, v in other.items() if ".bottom_up." in k}
    save_file(trunk, folder / "trunk.safetensors")
    state = read_foreign(folder / "trunk.safetensors")
    assert take_matching(found, state, folder / "trunk.safetensors", PREFIXES) == len(trunk) > 50
