"""What a batch says to the people who open it: README.txt and the tables of label names."""

from __future__ import annotations

import colorsys
import json
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import quoteattr

from dal_dense.exchange.coco import IGNORE_NAME, QUERY_NAME
from dal_dense.query import QueryRegion, Sidecar
from dal_dense.records import IGNORE

_VOLUMES = """\
images/      the crops to label: NIfTI, they overlay the full scan in any viewer (_ch1, _ch2: further channels)
proposals/   what the model thinks, one label crop a region (not in the first batch): start from it
scans/       for work on the whole scan: the proposal (0 outside the regions) and the regions, numbered
labels.txt   label names for ITK-SNAP      labels.ctbl   the same for 3D Slicer

Label every voxel of a crop, background included, and save it as returned/REGION.nii.gz on the crop's own
grid (in 3D Slicer: export to labelmap with the crop as reference volume). Or label a whole scan inside its
regions and save it as returned/IMAGE.nii.gz once all of its regions are done.
"""

_FRAMES = """\
images/      the crops to label
proposals/   what the model thinks, as PNGs of class numbers (not in the first batch)
frames/      the whole frames with the regions outlined, to see what is around
coco_crops.json    the crops with the proposals, for CVAT, Label Studio and others that read COCO
coco_frames.json   the whole frames with the proposals; __query__ outlines a region

Return one of these in returned/:
  REGION.png         class numbers, 8 bit, of the crop's size
  IMAGE.png          the same for a whole frame, once all of its regions are done
  any-name.json      COCO; polygons or masks. Set "reviewed": true on each image that is done, or name the
                     regions in reviewed.txt, one a line (* for all). A reviewed image without annotation is a label.
Mark ground you cannot tell as __ignore__ ({ignore} in a PNG). Where outlines overlap, the smaller lies on top.
"""

_BOXES = """\
images/      the crops to label; of a box query, the predicted box with the ground around it
frames/      the whole frames with the regions outlined, to see what is around
region_masks/      a mask a frame, 255 inside this round's regions
coco_crops.json    the crops with the predicted boxes, for CVAT, Label Studio and others that read COCO
coco_frames.json   the whole frames with the predicted boxes; __query__ outlines a region

Crops and whole images: draw a box around EVERY object inside; what is not boxed is taken for background. Of an
object that the border cuts, box the part you see.
Box queries (listed as "box" below): judge the one box. Right: leave it. Wrong place or class: correct it. No object:
delete it. An object nearby that has no box may be added; you need not look for others. If it has a query of its own,
here or in a crop, that query holds it, and a box of it drawn here as well counts once.
Draw __ignore__ around what you cannot tell, such as a crowd (or set iscrowd to 1).

Return the COCO json, under any name, in returned/. Set "reviewed": true on each image that is done, or name the
regions in reviewed.txt, one a line (* for all). A reviewed image without a box is an answer: nothing is there.

CVAT: 1. new task; paste these labels into the "Raw" tab; upload images/ (or frames/)
{labels}
      2. Actions, Upload annotations, COCO 1.0, coco_crops.json (or coco_frames.json)
      3. when done: Export task dataset, COCO 1.0; put instances_default.json into returned/
      4. CVAT drops "reviewed", so list the finished regions in returned/reviewed.txt
Label Studio: 1. new project; paste this under Labeling Setup, Code
{setup}
      2. import images/; or, to begin from the predictions, serve images/ and import the tasks.json that comes from
         label-studio-converter import coco -i coco_crops.json -o tasks.json --out-type predictions \\
           --image-root-url URL_OF_IMAGES
      3. when done: Export, COCO; put result.json into returned/ and list the finished regions in returned/reviewed.txt
Both may number classes anew: their names count. Leave the images' names as they are.
"""

_MASKS = """\

Everywhere: {ignore} means "leave unlabelled".
"""

_ALL = """\
times.csv (columns region_id,seconds) may log how long each region took.
Return as many as are done; the rest stays open. Leave query.json as it is, and keep the regions' names.
Then call the command again that made this batch.
"""


def write_guide(folder: Path, sidecar: Sidecar, ndim: int) -> None:
    """Write README.txt and, for volumes, the label tables."""
    minutes = sum(e.region.seconds for e in sidecar.regions) / 60
    named = sidecar.classes.items()
    classes = [f"  {value:>3}  {name}" for value, name in named if sidecar.labels == "mask" or value != "0"]
    title = f"Round {sidecar.round} of run {sidecar.run}: {len(sidecar.regions)} regions, about {minutes:.0f} minutes"
    lines = [
        title,
        "",
        *_steps(sidecar, ndim),
        "Classes",
        *classes,
        "",
        "Regions: image, first and one past the last index along each axis as stored",
        *(_row(entry.region) for entry in sidecar.regions),
        "",
    ]
    (folder / "README.txt").write_text("\n".join(lines), encoding="utf-8")
    if ndim == 3:
        names = tuple(sidecar.classes.values())
        (folder / "labels.txt").write_text(snap_table(names), encoding="utf-8")
        (folder / "labels.ctbl").write_text(slicer_table(names), encoding="utf-8")


def _steps(sidecar: Sidecar, ndim: int) -> list[str]:
    if sidecar.labels == "mask":
        return [((_VOLUMES if ndim == 3 else _FRAMES) + _MASKS + _ALL).format(ignore=sidecar.ignore_index)]
    names = [*list(sidecar.classes.values())[1:], IGNORE_NAME, QUERY_NAME]
    labels = json.dumps([{"name": name, "type": "rectangle", "attributes": []} for name in names])
    options = "".join(f"<Label value={quoteattr(name)}/>" for name in names)
    boxes = f'<RectangleLabels name="label_rectangles" toName="image">{options}</RectangleLabels>'
    setup = f'<View><Image name="image" value="$image"/>{boxes}</View>'
    return [_BOXES.format(labels=labels, setup=setup), _ALL]


def _row(region: QueryRegion) -> str:
    where = f"{list(region.start)} {list(region.stop)}"
    kind = "  box" if region.kind == "box" else ""
    return f"  {region.id}  {region.image_id}  {where}  about {region.seconds:.0f} s{kind}"


def snap_table(classes: Sequence[str]) -> str:
    """A label description file for ITK-SNAP: index, red, green, blue, opacity, shown, meshed, name."""
    rows = []
    for i, name in _named(classes):
        shown = int(i > 0)
        rows.append(f'{i} {" ".join(map(str, colour(i)))} {shown} {shown} {shown} "{name}"')
    return "# ITK-SNAP label descriptions: index, R, G, B, A, visible, mesh, name\n" + "\n".join(rows) + "\n"


def slicer_table(classes: Sequence[str]) -> str:
    """A colour table for 3D Slicer: index, name without blanks, red, green, blue, opacity."""
    rows = [
        f"{i} {'_'.join(name.split())} {' '.join(map(str, colour(i)))} {255 if i else 0}" for i, name in _named(classes)
    ]
    return "# Color table: index, name, R, G, B, A\n" + "\n".join(rows) + "\n"


def _named(classes: Sequence[str]) -> list[tuple[int, str]]:
    return [*enumerate(name.replace('"', "'") for name in classes), (IGNORE, "leave unlabelled")]


def colour(value: int) -> tuple[int, int, int]:
    """A colour a class; neighbours in number differ most (golden ratio steps around the hue circle)."""
    if value == 0:
        return 0, 0, 0
    if value == IGNORE:
        return 128, 128, 128
    red, green, blue = colorsys.hsv_to_rgb(value * 0.618034 % 1, 0.75, 0.95)
    return round(red * 255), round(green * 255), round(blue * 255)
