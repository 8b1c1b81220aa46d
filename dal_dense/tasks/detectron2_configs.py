"""Networks from a user's own Detectron2 config: yaml (CfgNode) or .py (LazyConfig).

What is set from our settings, whatever the file says: the number of classes, no masks, keypoints,
precomputed proposals or federated loss, no weights (`task.detection.weights` names them), and anchor
sizes if `task.detection.anchor_sizes` is not the default. What counts as a detection follows in
`detectron2_detector`. All else stays as the file has it.

A yaml file is data here: nothing in it is run. Detectron2's own RetinaNet files hold one expression,
a list of anchor sizes; such lists of numbers are worked out without `eval`.
"""

from __future__ import annotations

import ast
import operator
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import META_ARCH_REGISTRY
from torch import nn

from dal_dense.config import DetectionConfig
from dal_dense.errors import ConfigError

VERSION = 2
"""Of Detectron2's yaml files."""

OPERATIONS: dict[type[ast.operator], Any] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
}


def network_of_file(path: Path, detection: DetectionConfig, classes: int) -> nn.Module:
    """The network that a user's config describes; weights come from the global generator.

    Args:
        path: .yaml, .yml or .py.
        detection: anchor sizes, if they are to win.
        classes: with background.

    Raises:
        ConfigError: if the file is missing or cannot be used.
    """
    make = _of_lazy if _is_lazy(path) else _of_yaml
    return make(path, detection, classes - 1)


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a user's config is made of: those that `_BASE_` names in yaml, lowest first, and itself.

    Raises:
        ConfigError: if one is missing, or cannot be read as plain yaml.
    """
    return (path,) if _is_lazy(path) else tuple(file for file, _ in _layers(path))


def _is_lazy(path: Path) -> bool:
    """A LazyConfig, or else yaml."""
    if not path.is_file():
        raise ConfigError(f"task.detection.config_file: {path} is not there; correct the path, or use null")
    return path.suffix == ".py"


def _of_yaml(path: Path, detection: DetectionConfig, objects: int) -> nn.Module:
    cfg = get_cfg()
    loaded = read_yaml(path)
    if loaded.get("VERSION", VERSION) != VERSION:
        raise ConfigError(
            f"task.detection.config_file: {path} has VERSION {loaded['VERSION']}, expected {VERSION}; "
            "load and dump it with Detectron2 once, which brings it up to date"
        )
    try:
        cfg.merge_from_other_cfg(CfgNode(loaded))
    except (KeyError, ValueError, AssertionError) as problem:
        raise ConfigError(
            f"task.detection.config_file: Detectron2 refuses {path}: {problem}; correct that entry"
        ) from problem
    model = cfg.MODEL
    model.DEVICE, model.WEIGHTS, cfg.VIS_PERIOD = "cpu", "", 0
    model.MASK_ON = model.KEYPOINT_ON = model.LOAD_PROPOSALS = model.ROI_BOX_HEAD.USE_FED_LOSS = False
    model.ROI_HEADS.NUM_CLASSES = model.RETINANET.NUM_CLASSES = objects
    retina = model.META_ARCHITECTURE == "RetinaNet"
    if detection.anchor_sizes != DetectionConfig().anchor_sizes:
        levels = len(model.RETINANET.IN_FEATURES if retina else model.RPN.IN_FEATURES)
        model.ANCHOR_GENERATOR.SIZES = _sizes(detection.anchor_sizes, levels, model.ANCHOR_GENERATOR.SIZES, path)
    if model.META_ARCHITECTURE not in ("GeneralizedRCNN", "RetinaNet"):
        raise unsuited(path, model.META_ARCHITECTURE)
    network: nn.Module = META_ARCH_REGISTRY.get(model.META_ARCHITECTURE)(cfg)
    return network


def _of_lazy(path: Path, detection: DetectionConfig, objects: int) -> nn.Module:
    loaded = LazyConfig.load(str(path))
    if "model" not in loaded:
        raise ConfigError(f"task.detection.config_file: {path} defines no `model`; it should be a LazyConfig with one")
    model = loaded.model
    two_stage = "roi_heads" in model
    if not two_stage and not ("head" in model and "num_classes" in model):
        target = model.get("_target_", "no target")
        raise unsuited(path, getattr(target, "__name__", str(target)))
    if two_stage:
        heads = model.roi_heads
        for key in [k for k in heads if str(k).startswith(("mask_", "keypoint_"))]:
            del heads[key]
        heads.num_classes = objects
        if "box_predictor" in heads and "_target_" in heads.box_predictor:
            heads.box_predictor.num_classes = objects
            heads.box_predictor.use_fed_loss = False
    else:
        model.num_classes = model.head.num_classes = objects
    if detection.anchor_sizes != DetectionConfig().anchor_sizes:
        anchors = (model.proposal_generator if two_stage else model).get("anchor_generator")
        if anchors is None:
            raise ConfigError(
                f"task.detection.anchor_sizes: the network of {path.name} has points and no anchors, and its levels "
                "are the file's own; leave the setting out"
            )
        anchors.sizes = _sizes(detection.anchor_sizes, len(anchors.strides), anchors.sizes, path)
    network: nn.Module = instantiate(model)
    return network


def _sizes(ours: tuple[float, ...], levels: int, theirs: Any, path: Path) -> list[list[float]]:
    """Our sizes, one a level, each in as many steps of an octave as the file has sizes a level."""
    if levels == 1 and len(theirs[0]) == len(ours):
        return [list(ours)]
    if levels != len(ours):
        raise ConfigError(
            f"task.detection.anchor_sizes: {len(ours)} sizes, but {path.name} has {levels} levels; "
            "give one a level, or leave the setting out to keep the file's own"
        )
    steps = len(theirs[0])
    return [[float(s * 2 ** (i / steps)) for i in range(steps)] for s in ours]


def unsuited(path: Path | str, found: str) -> ConfigError:
    """The file describes something else."""
    yaml_of_fcos = found == "FCOS" and Path(path).suffix != ".py"
    remedy = "Detectron2 knows FCOS as a LazyConfig (.py) only, so write one" if yaml_of_fcos else "choose such a file"
    return ConfigError(
        f"task.detection.config_file: {path} describes {found}, expected GeneralizedRCNN with StandardROIHeads, "
        f"RetinaNet or FCOS, each with its own head; {remedy}, or leave it out"
    )


class _Loader(yaml.SafeLoader):
    """Safe: builds plain values only, and works out lists of numbers."""


def read_yaml(path: Path) -> dict[str, Any]:
    """A config with the files that `_BASE_` names under it; none of it is run.

    Raises:
        ConfigError: if a file is missing, is no mapping, names itself as its base, or wants to run code.
    """
    whole: dict[str, Any] = {}
    for _, found in _layers(path):
        _merge(found, whole)
    return whole


def _layers(path: Path, above: tuple[Path, ...] = ()) -> list[tuple[Path, dict[str, Any]]]:
    """Each file and what it says itself, the lowest base first."""
    if path.resolve() in above:
        raise ConfigError(f"task.detection.config_file: {path} is its own _BASE_; take it out there")
    try:
        with path.open(encoding="utf-8") as file:
            found = yaml.load(file, _Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as problem:
        raise ConfigError(f"task.detection.config_file: {path} cannot be read as plain yaml: {problem}") from problem
    if not isinstance(found, dict):
        raise ConfigError(f"task.detection.config_file: {path} holds no settings; a Detectron2 config was expected")
    bases = found.pop("_BASE_", [])
    layers: list[tuple[Path, dict[str, Any]]] = []
    for base in [bases] if isinstance(bases, str) else bases:
        layers += _layers(path.parent / Path(base).expanduser(), (*above, path.resolve()))
    return [*layers, (path, found)]


def _merge(above: dict[str, Any], below: dict[str, Any]) -> None:
    for key, value in above.items():
        if isinstance(value, dict) and isinstance(below.get(key), dict):
            _merge(value, below[key])
        else:
            below[key] = value


def _worked_out(loader: yaml.SafeLoader, node: yaml.Node) -> Any:
    """`!!python/object/apply:eval`, if it is a list of numbers."""
    values = loader.construct_sequence(node) if isinstance(node, yaml.SequenceNode) else []
    try:
        (text,) = values
        return _number(ast.parse(str(text), mode="eval").body, {})
    except (ValueError, SyntaxError, ArithmeticError) as problem:
        raise yaml.constructor.ConstructorError(
            None, None, "an expression other than a list of numbers is not run; write its value", node.start_mark
        ) from problem


def _number(node: ast.expr, names: dict[str, Any]) -> Any:
    """Numbers, lists of them, sums and products, and one list comprehension over them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        return node.value
    if isinstance(node, ast.Name) and node.id in names:
        return names[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_number(each, names) for each in node.elts]
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        left, right = _number(node.left, names), _number(node.right, names)
        if all(isinstance(v, int | float) and abs(v) < 1e6 for v in (left, right)):
            return OPERATIONS[type(node.op)](float(left), right)
    if isinstance(node, ast.ListComp) and len(node.generators) == 1:
        (loop,) = node.generators
        if isinstance(loop.target, ast.Name) and not loop.ifs:
            over = _number(loop.iter, names)
            return [_number(node.elt, {**names, loop.target.id: value}) for value in over]
    raise ValueError(ast.dump(node))


_Loader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _worked_out)
_Loader.add_constructor(
    "tag:yaml.org,2002:python/tuple",
    lambda loader, node: tuple(loader.construct_sequence(node)),  # type: ignore[arg-type]
)
