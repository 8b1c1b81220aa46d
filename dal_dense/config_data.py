"""Settings of the pool: where images, masks, splits, groups and times come from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from os.path import normpath
from typing import Literal

from pydantic import Field, field_validator, model_validator

from dal_dense.config_task import Settings

IGNORED_NAME = "ignore"
"""A label of this name means 'not labelled', as in nnU-Net."""

MOST_CLASSES = 254
"""Class numbers are kept in a byte, in which 255 means 'not labelled'."""


class DataConfig(Settings):
    """The pool: where images, masks, splits and groups come from."""

    format: Literal["msd", "nnunet", "folder", "coco", "dicom"] = Field(
        description="msd: MSD/MONAI dataset.json; nnunet: nnU-Net v2 raw folder; folder: images (+ masks) in NIfTI, "
        "PNG or JPEG; coco: COCO json with images; dicom: a folder of DICOM series, read as volumes"
    )
    listing: str | None = Field(
        default=None, description="msd, coco: the json file, relative to data_root (msd: dataset.json if not given)"
    )
    images: str = Field(default="images", description="folder, coco, dicom: folder of images, relative to data_root")
    masks: str | None = Field(
        default="masks", description="folder: folder of index masks with the images' names; null: there are none"
    )
    mask_suffix: str = Field(
        default="", description="folder: what a mask's name adds to the image's, such as _labelIds"
    )
    image_suffix: str = Field(
        default="", description="folder: end of the images' names that ids and masks leave out, such as _leftImg8bit"
    )
    classes: dict[int, str] | None = Field(
        default=None, description="label value to class name; msd, nnunet and coco listings carry their own"
    )
    test_listing: str | None = Field(
        default=None,
        description="coco: a second json, relative to data_root, whose images measure the model; "
        "null: the listing holds them too",
    )
    unannotated: Literal["open", "empty"] = Field(
        default="open",
        description='coco: an image without annotations and without "reviewed" is not looked at yet (open), '
        "or was looked at and holds nothing (empty)",
    )
    ignore_index: int | None = Field(
        default=None, description="label value that means 'not labelled' in the masks (CamVid here: 11)"
    )
    split_file: str | None = Field(
        default=None,
        description="json of split name to list of ids, relative to data_root; else the listing's own split",
    )
    train: str = Field(default="train", description="split that is the pool")
    test: str = Field(default="test", description="split that measures the model; never asked")
    test_fraction: float = Field(
        default=0.2,
        ge=0,
        lt=1,
        description="share of groups held out when neither split_file nor listing has a test split",
    )
    group_field: str | None = Field(
        default=None, description="field of a listing's image record that names its patient or drive (coco, msd)"
    )
    group_pattern: str | None = Field(
        default=None, description="regular expression on the id; its first bracket is the group, as in ^([^_]+)_"
    )
    group_table: str | None = Field(default=None, description="csv with the columns id,group, relative to data_root")
    time_field: str | None = Field(
        default=None, description="coco, msd: field of an image record that holds its time within its group, seconds"
    )
    time_pattern: str | None = Field(
        default=None, description="regular expression on the id; its first bracket is a number: the frame's time"
    )
    max_pool: int | None = Field(default=None, ge=1, description="use only so many pool images, drawn by seed")
    max_test: int | None = Field(default=None, ge=1, description="use only so many test images, drawn by seed")
    strict: bool = Field(default=False, description="stop at the first bad file instead of listing it as quarantined")

    @field_validator("group_pattern", "time_pattern")
    @classmethod
    def _with_a_bracket(cls, text: str | None) -> str | None:
        try:
            brackets = 1 if text is None else re.compile(text).groups
        except re.error as problem:
            raise ValueError(f"{text!r} is no regular expression ({problem}); correct it") from None
        if not brackets:
            raise ValueError(f"{text!r} has no bracket; put one around what is meant, as in (\\w+)_\\d+")
        return text

    @model_validator(mode="after")
    def _possible(self) -> DataConfig:
        for names in (("group_field", "group_pattern", "group_table"), ("time_field", "time_pattern")):
            named = [name for name in names if getattr(self, name) is not None]
            if len(named) > 1:
                raise ValueError(f"{' and '.join(named)} are set, but one of them is enough; keep one")
        if self.format == "coco" and self.listing is None:
            raise ValueError("listing is null, and format coco needs the json file, relative to data_root")
        for name in ("group_field", "time_field"):
            if getattr(self, name) is not None and self.format not in ("coco", "msd"):
                raise ValueError(
                    f"{name} {getattr(self, name)} is a field of a coco or msd listing, and format is {self.format}; "
                    f"use {name.replace('field', 'pattern')}"
                )
        if self.format in ("folder", "dicom") and not self.classes:
            raise ValueError("classes is null, and folders do not name them; give label values and names")
        shared = self.masks is not None and normpath(self.masks) == normpath(self.images)
        if self.format == "folder" and shared and not self.mask_suffix:
            raise ValueError(
                f"mask_suffix is needed when images and masks share a folder ({self.masks}); "
                "give the end of masks' names"
            )
        fault = None if self.classes is None else class_fault(self.classes, self.ignore_index, self.format == "coco")
        if fault is not None:
            raise ValueError(fault)
        return self


def class_fault(labels: Mapping[int, str], ignored: int | None, coco: bool) -> str | None:
    """What is wrong with label values and their names, as "setting fact; remedy"; None if nothing.

    Args:
        labels: label value to class name.
        ignored: label value that means "not labelled".
        coco: the listing is COCO's, which never names its background.
    """
    if ignored is not None and labels.get(ignored, IGNORED_NAME) != IGNORED_NAME:
        return f"ignore_index {ignored} is the class {labels[ignored]!r} too; drop one of them"
    names = {name for name in labels.values() if name != IGNORED_NAME}
    if coco and labels.get(0) != "background":
        names.add("background")
    if not 2 <= len(names) <= MOST_CLASSES:
        return f"classes: {len(names)} named, with the background; name between 2 and {MOST_CLASSES}"
    return None
