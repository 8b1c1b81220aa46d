"""One round's chosen regions, frozen, and the `query.json` sidecar that travels with them.

The sidecar is the only thing that the way back reads besides the labels. Its JSON Schema is
published in `docs/query.schema.json`.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from dal_dense.regions import Box

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class QueryRegion(_Frozen):
    """One region a person is asked to label."""

    id: str = Field(pattern=ID_PATTERN, description="unique in the run: r<round>-<number>")
    image_id: str = Field(description="id of the image in the pool")
    kind: Literal["crop", "slice", "image", "box"]
    start: tuple[int, ...] = Field(description="first voxel or pixel, in the file's axis order")
    stop: tuple[int, ...] = Field(description="one past the last voxel or pixel")
    score: float = Field(description="the acquisition score it was chosen by")
    seconds: float = Field(ge=0, description="predicted labelling time, its share of opening the image included")
    boundary: float = Field(default=0.0, ge=0, description="expected contour length, mm or pixels")
    objects: float = Field(default=0.0, ge=0, description="expected number of objects")
    shares: dict[str, float] = Field(default_factory=dict, description="predicted class shares")

    @model_validator(mode="after")
    def _not_empty(self) -> QueryRegion:
        if len(self.start) != len(self.stop) or any(
            a < 0 or b <= a for a, b in zip(self.start, self.stop, strict=False)
        ):
            raise ValueError(f"box {self.start}..{self.stop} is empty or negative")
        return self

    @property
    def box(self) -> Box:
        """(start, stop) for `regions.slices`."""
        return self.start, self.stop

    @property
    def shape(self) -> tuple[int, ...]:
        """Side lengths in voxels or pixels."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))


class Query(_Frozen):
    """What one round asks."""

    round: int = Field(ge=0)
    strategy: str
    seed: int
    regions: tuple[QueryRegion, ...]

    @property
    def seconds(self) -> float:
        """Predicted labelling time of the whole query."""
        return sum((r.seconds for r in self.regions), 0.0)


class SourceImage(_Frozen):
    """Where a region was cut from, so that a return can be checked against the very same file."""

    path: str = Field(description="relative to data_root")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...] | None = Field(
        default=None, description="4x4 voxel-to-mm of the source volume; null for frames"
    )


class SidecarRegion(_Frozen):
    """One region with the files that were written for it (relative to the batch folder)."""

    region: QueryRegion
    source: SourceImage
    files: dict[str, str] = Field(description="role (image, proposal, scan_proposal, region_mask) to file")
    status: Literal["open", "answered"] = Field(
        default="open", description="when the batch was written, which never changes; later answers are in the ledger"
    )
    shown: tuple[tuple[int, int], tuple[int, int]] | None = Field(
        default=None, description="box queries: first and one past the last pixel of what the image shows around it"
    )
    predicted: tuple[float, float, float, float, float] | None = Field(
        default=None,
        description="box queries: the predicted box as first row, first column, last row, last column, class number",
    )

    @property
    def window(self) -> Box:
        """The ground that the region's own image shows: the region, or more around a box."""
        return self.shown or self.region.box


class Sidecar(_Frozen):
    """`query.json`: ties ids, source files, boxes, costs and status of one exported batch."""

    format: Literal["dal_dense.query"] = "dal_dense.query"
    version: Literal[1] = 1
    labels: Literal["mask", "boxes"] = Field(default="mask", description="what a label is: class numbers, or boxes")
    run: str = Field(description="id of the run that asked")
    round: int = Field(ge=0)
    strategy: str
    seed: int
    model_sha256: str | None = Field(default=None, description="weights that made the proposals")
    classes: dict[str, str] = Field(description="label value (as text) to class name")
    ignore_index: int
    background: int | None = Field(
        default=None, description="label value of ground that a returned COCO json leaves empty; null: stays unlabelled"
    )
    regions: tuple[SidecarRegion, ...]
