"""Every layout on disk becomes the same kind of listing; nothing leads out of data_root."""

import builtins
import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dal_dense.boxes import IGNORED
from dal_dense.config import DataConfig
from dal_dense.errors import ConfigError, DataError, MissingPackageError
from dal_dense.images import anatomical_axes, read_header, read_image
from dal_dense.pool import Pool, open_pool
from dal_dense.records import IGNORE
from dal_dense.sources.base import image_id, inside, label_names, walk

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools, NumPy 2


def nifti(path: Path, array: np.ndarray | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), np.int16) if array is None else array, np.eye(4)), path)


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def pool(root: Path, **settings: object) -> Pool:
    return open_pool(DataConfig.model_validate(settings), root, seed=0)


def ids(records: object) -> list[str]:
    return [r.id for r in records]  # type: ignore[attr-defined]


# --- MSD


def msd(root: Path, **changes: object) -> dict[str, object]:
    """The decathlon's own layout: six cases, test without labels, and what macOS leaves in archives."""
    cases = [f"la_{i:03d}" for i in range(6)]
    for case in cases:
        touch(root / f"imagesTr/{case}.nii.gz", root / f"labelsTr/{case}.nii.gz")
    touch(root / "imagesTs/la_900.nii.gz", root / "imagesTr/._la_000.nii.gz")
    content: dict[str, object] = {
        "labels": {"0": "background", "1": "left atrium"},
        "modality": {"0": "MRI"},
        "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases],
        "test": ["./imagesTs/la_900.nii.gz"],
    }
    content |= changes
    (root / "dataset.json").write_text(json.dumps(content))
    return content


def test_msd_as_published(tmp_path: Path) -> None:
    content = msd(tmp_path)
    content["training"].append({"image": "./imagesTr/._la_000.nii.gz", "label": "./labelsTr/._la_000.nii.gz"})  # type: ignore[attr-defined]
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    found = pool(tmp_path, format="msd")
    assert found.classes == ("background", "left atrium") and found.ndim == 3
    assert len(found.test) == 1 and len(found.train) == 5 and found.quarantined == {}
    assert set(ids(found.train)) | set(ids(found.test)) == {f"la_{i:03d}" for i in range(6)}
    assert found.notes == ("1 of 1 listed test images have no mask and are left out",)
    one = found["la_002"]
    assert one.relative == ("imagesTr/la_002.nii.gz",) and one.mask == tmp_path / "labelsTr/la_002.nii.gz"
    assert one.group == "la_002"


def test_monai_test_entries_with_labels_are_the_test_split(tmp_path: Path) -> None:
    touch(tmp_path / "labelsTs/la_900.nii.gz")
    msd(tmp_path, test=[{"image": "imagesTs/la_900.nii.gz", "label": "labelsTs/la_900.nii.gz"}])
    found = pool(tmp_path, format="msd")
    assert ids(found.test) == ["la_900"] and len(found.train) == 6 and found.notes == ()


def test_msd_labels_by_name_fields_and_channel_lists(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/p{i}_{c}.nii.gz" for i in range(3) for c in range(2)))
    training = [{"image": [f"images/p{i}_0.nii.gz", f"images/p{i}_1.nii.gz"], "patient": i // 2} for i in range(3)]
    msd(tmp_path, training=training, labels={"background": 0, "tumour": 2}, test=[])
    found = pool(tmp_path, format="msd", group_field="patient")
    assert found.classes == ("background", "tumour") and found.mapping == {0: 0, 2: 1}
    assert len(found.train[0].paths) == 2 and [r.group for r in found.train] == ["0", "0", "1"]
    assert found.test == () and "nothing is measured" in found.notes[0]


def test_a_listed_file_that_is_not_there_is_set_aside_unless_strict(tmp_path: Path) -> None:
    msd(tmp_path)
    (tmp_path / "labelsTr/la_001.nii.gz").unlink()
    found = pool(tmp_path, format="msd")
    assert "la_001" not in ids(found.train) and "listed in dataset.json but not there" in found.quarantined["la_001"]
    with pytest.raises(DataError, match=r"la_001.nii.gz: listed in dataset.json but not there"):
        pool(tmp_path, format="msd", strict=True)


@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "imagesTr/../../x.nii.gz", 7, ""])
def test_a_listing_cannot_lead_out_of_data_root(tmp_path: Path, path: object) -> None:
    root = tmp_path / "data"
    msd(root / "a", training=[{"image": path}])
    with pytest.raises(DataError, match=r"leads out of data_root|stands where a file name is needed"):
        pool(root / "a", format="msd")


@given(st.lists(st.sampled_from(["..", ".", "a", "b", ""]), max_size=7))
def test_inside_agrees_with_the_disks_own_answer(parts: list[str]) -> None:
    text = "/".join(parts) or "."
    expected = (Path("/r/data/sub") / text.lstrip("/")).resolve()
    try:
        found = inside(Path("/r/data"), Path("/r/data/sub"), text.lstrip("/") or ".", Path("listing"))
    except DataError:
        assert not expected.is_relative_to("/r/data")
    else:
        assert found == expected and found.is_relative_to("/r/data")


def test_broken_listings_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the listing is not there"):
        pool(tmp_path, format="msd")
    for text, words in (("{", "no valid JSON"), ("[]", "must be a JSON object"), ("{}", 'no list "training"')):
        (tmp_path / "dataset.json").write_text(text)
        with pytest.raises(DataError, match=words):
            pool(tmp_path, format="msd")


def test_labels_either_way_round() -> None:
    here = Path("dataset.json")
    assert label_names(here, {"0": "a", "1": "b"}) == label_names(here, {"a": 0, "b": 1}) == {0: "a", 1: "b"}
    with pytest.raises(DataError, match="regions made of several values"):
        label_names(here, {"background": 0, "whole tumour": [1, 2]})
    with pytest.raises(DataError, match="must map values to names"):
        label_names(here, ["a"])


# --- nnU-Net


def nnunet(root: Path, test_labels: bool = True) -> None:
    for case in ("BRATS_001", "BRATS_002", "BRATS_003"):
        for channel in range(2):
            nifti(root / f"imagesTr/{case}_{channel:04d}.nii.gz", np.full((3, 4, 5), channel, np.int16))
        nifti(root / f"labelsTr/{case}.nii.gz", np.array([0, 1, 2, 3, 0] * 12, np.uint8).reshape(3, 4, 5))
    for channel in range(2):
        touch(root / f"imagesTs/BRATS_900_{channel:04d}.nii.gz")
    if test_labels:
        touch(root / "labelsTs/BRATS_900.nii.gz")
    labels = {"background": 0, "oedema": 1, "core": 2, "ignore": 3}
    content = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz", "numTraining": 3}
    (root / "dataset.json").write_text(json.dumps(content))


def test_nnunet_channels_and_ignore_label(tmp_path: Path) -> None:
    nnunet(tmp_path / "Dataset001_BRATS")
    found = pool(tmp_path, format="nnunet", listing="Dataset001_BRATS/dataset.json")
    assert found.classes == ("background", "oedema", "core") and found.mapping[3] == IGNORE
    assert ids(found.train) == ["BRATS_001", "BRATS_002", "BRATS_003"] and ids(found.test) == ["BRATS_900"]
    image, mask = read_image(found.train[0]), found.mask(found.train[0])
    assert image.shape == (2, 3, 4, 5) and image[1].min() == 1
    assert mask is not None and set(np.unique(mask)) == {0, 1, 2, IGNORE}


def test_nnunet_without_test_labels_holds_out_cases(tmp_path: Path) -> None:
    nnunet(tmp_path, test_labels=False)
    found = pool(tmp_path, format="nnunet")
    assert len(found.train) == 2 and len(found.test) == 1 and "BRATS_900" not in ids((*found.train, *found.test))


def test_nnunet_case_without_a_channel_is_set_aside(tmp_path: Path) -> None:
    nnunet(tmp_path)
    (tmp_path / "imagesTr/BRATS_002_0001.nii.gz").unlink()
    found = pool(tmp_path, format="nnunet")
    assert found.quarantined["BRATS_002"].endswith("has channels [0], needs [0, 1]; add the rest")


def test_nnunet_named_cases_replace_the_folders(tmp_path: Path) -> None:
    nnunet(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text())
    files = [f"imagesTr/BRATS_001_000{c}.nii.gz" for c in range(2)]
    content["dataset"] = {"one": {"images": files, "label": "labelsTr/BRATS_001.nii.gz"}}
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert ids(pool(tmp_path, format="nnunet").train) == ["one"]
    content["dataset"]["one"]["label"] = "../../elsewhere.nii.gz"
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="leads out of data_root"):
        pool(tmp_path, format="nnunet")


@pytest.mark.parametrize(
    ("change", "words"), [({"file_ending": ".mha"}, "not read here"), ({"channel_names": None}, "v2")]
)
def test_nnunet_listings_that_cannot_be_used(tmp_path: Path, change: dict[str, object], words: str) -> None:
    nnunet(tmp_path)
    content = json.loads((tmp_path / "dataset.json").read_text()) | change
    (tmp_path / "dataset.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        pool(tmp_path, format="nnunet")


# --- folders

TWO = {0: "road", 1: "car"}


def test_flat_folder_with_masks_for_a_few(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/{i:02d}.jpg" for i in range(6)), *(tmp_path / f"masks/{i:02d}.png" for i in range(3)))
    touch(tmp_path / "images/notes.txt", tmp_path / "images/.hidden.png")
    found = pool(tmp_path, format="folder", classes=TWO)
    assert len(found.test) == 1 and found.test[0].mask is not None and found.ndim == 2
    assert len(found.train) == 5 and sum(r.mask is not None for r in found.train) == 2


def test_folder_without_any_mask_is_a_pool_that_measures_nothing(tmp_path: Path) -> None:
    touch(*(tmp_path / f"images/{i}.nii.gz" for i in range(3)))
    found = pool(tmp_path, format="folder", classes=TWO, masks=None)
    assert len(found.train) == 3 and found.test == () and found.ndim == 3
    assert "nothing is measured" in found.notes[0] and found.mask(found.train[0]) is None


def test_cityscapes_layout(tmp_path: Path) -> None:
    for split, city, number in (("train", "aachen", 1), ("train", "bonn", 2), ("val", "ulm", 3), ("test", "bern", 4)):
        name = f"{split}/{city}/{city}_000000_{number:06d}"
        touch(tmp_path / f"leftImg8bit/{name}_leftImg8bit.png", tmp_path / f"leftImg8bit/{name}_preview.png")
        touch(tmp_path / f"gtFine/{name}_gtFine_labelIds.png", tmp_path / f"gtFine/{name}_gtFine_color.png")
    found = pool(
        tmp_path, format="folder", images="leftImg8bit", masks="gtFine", image_suffix="_leftImg8bit",
        mask_suffix="_gtFine_labelIds", classes=TWO, test="val", group_pattern=r"\.([a-z]+)_",
    )  # fmt: skip
    assert ids(found.train) == ["train.aachen.aachen_000000_000001", "train.bonn.bonn_000000_000002"]
    assert ids(found.test) == ["val.ulm.ulm_000000_000003"]
    assert [r.group for r in found.train] == ["aachen", "bonn"]
    assert all(r.mask is not None and r.mask.name.endswith("_labelIds.png") for r in (*found.train, *found.test))


def test_images_and_masks_in_one_folder(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{p}{s}.nii.gz" for p in "abc" for s in ("", "_seg")))
    found = pool(tmp_path, format="folder", images=".", masks=".", mask_suffix="_seg", classes=TWO)
    assert sorted(ids((*found.train, *found.test))) == ["a", "b", "c"]
    assert all(r.mask == tmp_path / f"{r.id}_seg.nii.gz" for r in found.train)


def test_masks_inside_the_image_folder_are_no_images(tmp_path: Path) -> None:
    touch(*(tmp_path / f"{n}.png" for n in "ab"), *(tmp_path / f"masks/{n}.png" for n in "ab"))
    found = pool(tmp_path, format="folder", images=".", classes=TWO)
    assert sorted(ids((*found.train, *found.test))) == ["a", "b"]


def test_masks_that_belong_to_no_image_are_told(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.png", tmp_path / "masks/a_L.png")
    with pytest.raises(DataError, match=r"none of its 1 masks belongs to an image: mask 'a_L', image 'a.png'; correct"):
        pool(tmp_path, format="folder", classes=TWO)


def test_two_masks_for_one_image_are_told(tmp_path: Path) -> None:
    touch(tmp_path / "images/a.png", tmp_path / "masks/a.png", tmp_path / "masks/a.jpg")
    with pytest.raises(DataError, match=r"a.png: a second mask for 'a', besides a.jpg; keep one"):
        pool(tmp_path, format="folder", classes=TWO)


def test_links_to_a_folder_above_do_not_loop(tmp_path: Path) -> None:
    touch(tmp_path / "images/a/1.png", tmp_path / "elsewhere/2.png")
    (tmp_path / "images/a/up").symlink_to(tmp_path / "images")
    (tmp_path / "images/b").symlink_to(tmp_path / "elsewhere")
    assert [(r, n) for r, n in walk(tmp_path / "images") if n] == [("a/", ["1.png"]), ("b/", ["2.png"])]


def test_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"images: no such folder"):
        pool(tmp_path, format="folder", classes=TWO, masks=None)


@given(st.text(min_size=1))
def test_ids_are_safe_in_file_names(text: str) -> None:
    found = image_id(text)
    assert found[0] not in ".-"
    assert set(found) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


# --- COCO


def coco(root: Path, annotations: list[dict[str, object]], **image: object) -> None:
    for name in "abc":
        path = root / f"images/{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(path)
    images = [{"id": i, "file_name": f"{n}.jpg", "drive": f"d{i // 2}", **image} for i, n in enumerate("abc")]
    categories = [{"id": 7, "name": "van"}, {"id": 3, "name": "car"}]
    content = {"images": images, "categories": categories, "annotations": annotations}
    (root / "all.json").write_text(json.dumps(content))


SQUARE = {"category_id": 7, "segmentation": [[2, 1, 6, 1, 6, 5, 2, 5]]}


def test_coco_categories_masks_and_groups(tmp_path: Path) -> None:
    crowd = {"id": 2, "image_id": 1, "category_id": 3, "iscrowd": 1, "bbox": [0, 0, 3, 8]}
    coco(tmp_path, [{"id": 1, "image_id": 0, **SQUARE}, crowd])
    found = pool(tmp_path, format="coco", listing="all.json", group_field="drive", test_fraction=0)
    assert found.classes == ("background", "car", "van") and [r.group for r in found.train] == ["d0", "d0", "d1"]
    first, second = found.mask(found["a"]), found.mask(found["b"])
    assert first is not None and first.shape == (8, 10) and first[1:5, 2:6].min() == 2 and first.sum() == 32
    assert second is not None and (second == IGNORE).sum() == 24 and found.mask(found["c"]) is None


@pytest.mark.parametrize("said", [{"height": 16, "width": 20}, {"height": 10, "width": 8}])
def test_coco_a_frame_of_another_size_than_listed_is_told(tmp_path: Path, said: dict[str, int]) -> None:
    """Its boxes and polygons would mean other ground."""
    coco(tmp_path, [{"id": 1, "image_id": 0, **SQUARE}], **said)
    found = pool(tmp_path, format="coco", listing="all.json", test_fraction=0)
    words = (
        rf"a\.jpg: has 8 rows and 10 columns, its listing says {said['height']} and {said['width']}; (rest|if an EX)"
    )
    for read in (read_header, found.mask, found.boxes):
        with pytest.raises(DataError, match=words):
            read(found["a"])
    coco(tmp_path, [{"id": 1, "image_id": 0, **SQUARE}], height=8, width=10)
    mended = pool(tmp_path, format="coco", listing="all.json", test_fraction=0)
    assert mended.mask(mended["a"]) is not None


def test_coco_reviewed_and_empty_is_a_mask(tmp_path: Path) -> None:
    coco(tmp_path, [], reviewed=True)
    found = pool(tmp_path, format="coco", listing="all.json", test_fraction=0)
    mask = found.mask(found["c"])
    assert mask is not None and mask.max() == 0


def test_coco_keeps_only_the_categories_that_are_named(tmp_path: Path) -> None:
    coco(tmp_path, [{"id": 1, "image_id": 0, **SQUARE}])
    found = pool(tmp_path, format="coco", listing="all.json", classes={3: "car"}, test_fraction=0)
    mask = found.mask(found["a"])
    assert found.classes == ("background", "car") and mask is not None and mask.max() == 0
    with pytest.raises(ConfigError, match="99 is no category id"):
        pool(tmp_path, format="coco", listing="all.json", classes={99: "bus"})


@pytest.mark.parametrize(
    ("change", "words"),
    [({"image_id": 9}, "belongs to image 9, which is not listed"), ({"category_id": 9}, "of category 9, which is not")],
)
def test_coco_annotations_that_fit_nothing(tmp_path: Path, change: dict[str, object], words: str) -> None:
    coco(tmp_path, [{"id": 1, "image_id": 0, **SQUARE, **change}])
    with pytest.raises(DataError, match=words):
        pool(tmp_path, format="coco", listing="all.json")


def listing_of(root: Path, name: str, letters: str, **changes: object) -> None:
    """A COCO json of some frames, each with one box of category 7."""
    for letter in letters:
        path = root / f"images/{letter}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 10, 3), np.uint8)).save(path)
    content = {
        "images": [{"id": letter, "file_name": f"{letter}.jpg"} for letter in letters],
        "categories": [{"id": 7, "name": "van"}, {"id": 3, "name": "car"}],
        "annotations": [
            {"id": i, "image_id": a, "category_id": 7, "bbox": [1, 2, 3, 4]} for i, a in enumerate(letters)
        ],
    }
    (root / name).write_text(json.dumps({**content, **changes}))


def boxes_pool(root: Path, **settings: object) -> Pool:
    data = DataConfig.model_validate({"format": "coco", "listing": "all.json", "test_fraction": 0, **settings})
    return open_pool(data, root, seed=0, boxes=True)


def test_coco_a_second_json_measures(tmp_path: Path) -> None:
    listing_of(tmp_path, "all.json", "abc")
    listing_of(tmp_path, "test.json", "de")
    found = boxes_pool(tmp_path, test_listing="test.json")
    assert ids(found.train) == ["a", "b", "c"] and ids(found.test) == ["d", "e"]
    for record in (*found.train, *found.test):
        boxes = found.boxes(record)
        assert boxes is not None and boxes.table().tolist() == [[2, 1, 6, 4, 2, 0]]
    again = found.refresh()
    assert ids(again.train) == ids(found.train) and ids(again.test) == ids(found.test)
    assert again.truth(again["e"]) is not None


@pytest.mark.parametrize(
    "categories",
    [[{"id": 7, "name": "van"}], [{"id": 7, "name": "car"}, {"id": 3, "name": "van"}]],
)
def test_coco_jsons_of_other_categories_do_not_mix(tmp_path: Path, categories: list[dict[str, object]]) -> None:
    listing_of(tmp_path, "all.json", "abc")
    listing_of(tmp_path, "test.json", "de", categories=categories)
    with pytest.raises(DataError, match=r"test\.json: its categories .* differ from those of all\.json"):
        boxes_pool(tmp_path, test_listing="test.json")


def test_coco_an_image_in_both_jsons_is_told(tmp_path: Path) -> None:
    listing_of(tmp_path, "all.json", "abc")
    listing_of(tmp_path, "test.json", "cd")
    with pytest.raises(DataError, match="'c' is in the pool and in the test split"):
        boxes_pool(tmp_path, test_listing="test.json")


def test_coco_unannotated_images_are_open_or_empty_as_the_settings_say(tmp_path: Path) -> None:
    only_a = [{"id": 1, "image_id": "a", "category_id": 7, "bbox": [1, 2, 3, 4]}]
    reviewed = [{"id": i, "file_name": f"{i}.jpg", **more} for i, more in
                [("a", {}), ("b", {}), ("c", {"reviewed": True}), ("d", {"reviewed": False})]]  # fmt: skip
    listing_of(tmp_path, "all.json", "abcd", annotations=only_a, images=reviewed)

    def known(**settings: object) -> dict[str, int | None]:
        found = boxes_pool(tmp_path, **settings)
        truths = {r.id: found.truth(r) for r in found.train}
        return {name: None if truth is None else len(truth) for name, truth in truths.items()}

    assert known() == known(unannotated="open") == {"a": 1, "b": None, "c": 0, "d": None}
    assert known(unannotated="empty") == {"a": 1, "b": 0, "c": 0, "d": None}


def test_coco_ids_may_be_text_and_category_zero_may_be_an_object(tmp_path: Path) -> None:
    box = {"bbox": [1, 2, 3, 4], "image_id": "a"}
    given = [
        {"id": "x1", **box, "category_id": "0"},
        {"id": 2, **box, "category_id": 0},
        {"id": 3, **box, "category_id": "12"},
    ]
    names = [{"id": "0", "name": "cat"}, {"id": "12", "name": "dog"}]
    listing_of(tmp_path, "all.json", "ab", annotations=given, categories=names)
    found = boxes_pool(tmp_path)
    assert found.classes == ("background", "cat", "dog")
    boxes = found.boxes(found["a"])
    assert boxes is not None and boxes.classes.tolist() == [1, 1, 2]


def test_coco_category_zero_named_background_is_no_object(tmp_path: Path) -> None:
    box = {"bbox": [1, 2, 3, 4], "image_id": "a"}
    given = [{"id": 1, **box, "category_id": 0}, {"id": 2, **box, "category_id": 1}]
    names = [{"id": 0, "name": "background"}, {"id": 1, "name": "cat"}]
    listing_of(tmp_path, "all.json", "ab", annotations=given, categories=names)
    found = boxes_pool(tmp_path)
    boxes = found.boxes(found["a"])
    assert found.classes == ("background", "cat") and boxes is not None and boxes.classes.tolist() == [1]


def test_coco_boxes_of_ignored_categories_say_nothing(tmp_path: Path) -> None:
    listing_of(tmp_path, "all.json", "ab")
    for settings in ({"classes": {3: "car", 7: "ignore"}}, {"classes": {3: "car"}, "ignore_index": 7}):
        boxes = boxes_pool(tmp_path, **settings).boxes(boxes_pool(tmp_path, **settings)["a"])
        assert boxes is not None and boxes.status.tolist() == [IGNORED] and len(boxes.objects) == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"categories": [{"id": "seven", "name": "van"}]}, "category 'van' has the id 'seven'; give a whole number"),
        ({"categories": [{"id": True, "name": "van"}]}, "has the id True"),
        ({"categories": [{"id": 7.5, "name": "van"}]}, "has the id 7.5"),
        ({"categories": [{"name": "van"}]}, "has the id None"),
        ({"categories": [{"id": 7}]}, "has no name or is there twice"),
        ({"categories": [{"id": 7, "name": "van"}, {"id": "7", "name": "car"}]}, "has no name or is there twice"),
        ({"categories": []}, 'needs the lists "images" and "categories"'),
        ({"annotations": [{"id": 1, "image_id": "a", "category_id": "van"}]}, "annotation 1 has the id 'van'"),
        ({"annotations": [{"id": 1, "image_id": "a"}]}, "of category None, which is not listed"),
        ({"annotations": [{"id": 1, "image_id": "z", "category_id": 7}]}, "belongs to image 'z', which is not listed"),
    ],
)
def test_coco_ids_that_cannot_work(tmp_path: Path, change: dict[str, object], words: str) -> None:
    listing_of(tmp_path, "all.json", "ab", **change)
    with pytest.raises(DataError, match=words):
        boxes_pool(tmp_path)


def test_coco_without_annotations_is_an_open_pool(tmp_path: Path) -> None:
    listing_of(tmp_path, "all.json", "ab", annotations=None)
    found = boxes_pool(tmp_path)
    assert [found.truth(r) for r in found.train] == [None, None]


def test_coco_a_bad_box_is_told_when_its_image_is_looked_at(tmp_path: Path) -> None:
    given = [{"id": 1, "image_id": "a", "category_id": 7, "bbox": [1, 2, 0, 4]}]
    listing_of(tmp_path, "all.json", "ab", annotations=given)
    found = boxes_pool(tmp_path, unannotated="empty")
    with pytest.raises(DataError, match=r"all\.json: a\.jpg: annotation 1 has a box of width 0"):
        found.truth(found["a"])
    assert found.truth(found["b"]) is not None


def test_coco_cannot_lead_out_of_data_root(tmp_path: Path) -> None:
    coco(tmp_path, [], file_name="../../etc/passwd")
    with pytest.raises(DataError, match=r"'../../etc/passwd' leads out of data_root"):
        pool(tmp_path, format="coco", listing="all.json")


# --- DICOM

STEP = 2.5


def dicom(folder: Path, volume: np.ndarray, skip: tuple[int, ...] = (), **changes: object) -> None:
    """A CT series: volume (columns, rows, slices) as stored values, oblique in-plane, written in odd order."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    folder.mkdir(parents=True, exist_ok=True)
    turn = np.radians(10)
    row, column = np.array([np.cos(turn), np.sin(turn), 0]), np.array([-np.sin(turn), np.cos(turn), 0])
    series = generate_uid()
    for k in range(volume.shape[2]):
        if k in skip:
            continue
        data = pydicom.Dataset()
        data.file_meta = pydicom.dataset.FileMetaDataset()
        data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        data.file_meta.MediaStorageSOPClassUID = CTImageStorage
        data.SOPClassUID, data.SOPInstanceUID, data.SeriesInstanceUID = CTImageStorage, generate_uid(), series
        data.ImagePositionPatient = [-50.0, -60.0, -100.0 + STEP * k]
        data.ImageOrientationPatient = [*row, *column]
        data.PixelSpacing, data.SliceThickness = [0.8, 0.7], 2.5
        data.Rows, data.Columns = volume.shape[1], volume.shape[0]
        data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
        data.BitsAllocated = data.BitsStored = 16
        data.HighBit, data.PixelRepresentation = 15, 0
        data.RescaleSlope, data.RescaleIntercept = 2, -1024
        data.PixelData = np.ascontiguousarray(volume[:, :, k].T).astype("<u2").tobytes()
        for name, value in changes.items():
            setattr(data, name, value)
        data.save_as(folder / f"slice_{(k * 7) % 11:03d}.dcm", enforce_file_format=True)


VOLUME = np.random.default_rng(0).integers(0, 3000, (6, 5, 4))


def test_dicom_series_is_a_volume_in_hu_with_a_ras_affine(tmp_path: Path) -> None:
    dicom(tmp_path / "images/p1/ct", VOLUME)
    dicom(tmp_path / "images/p2", VOLUME)
    touch(tmp_path / "images/DICOMDIR")
    found = pool(tmp_path, format="dicom", classes=TWO, test_fraction=0)
    assert ids(found.train) == ["p1.ct", "p2"] and found.ndim == 3
    header, image = read_header(found.train[0]), read_image(found.train[0])
    assert header.shape == (6, 5, 4) and np.allclose(header.spacing, (0.7, 0.8, 2.5))
    assert np.array_equal(image[0], VOLUME * 2.0 - 1024)
    turn, at = np.radians(10), np.array([3.0, 2, 1, 1])
    lps = np.array([-50, -60, -100]) + 3 * 0.7 * np.array([np.cos(turn), np.sin(turn), 0])
    lps = lps + 2 * 0.8 * np.array([-np.sin(turn), np.cos(turn), 0]) + [0, 0, STEP]
    assert header.affine is not None and np.allclose((header.affine @ at)[:3], lps * [-1, -1, 1])
    assert anatomical_axes(header.affine) == (0, 1, 2)


def test_dicom_with_nifti_masks(tmp_path: Path) -> None:
    dicom(tmp_path / "images/p1", VOLUME)
    found = pool(tmp_path, format="dicom", classes=TWO, test_fraction=0)
    affine = read_header(found.train[0]).affine
    (tmp_path / "masks").mkdir()
    nib.save(nib.Nifti1Image((VOLUME > 1500).astype(np.uint8), affine), tmp_path / "masks/p1.nii.gz")
    found = pool(tmp_path, format="dicom", classes=TWO, test_fraction=0)
    mask = found.mask(found.train[0])
    assert mask is not None and np.array_equal(mask, VOLUME > 1500)


def series_error(tmp_path: Path) -> str:
    found = pool(tmp_path, format="dicom", classes=TWO, test_fraction=0)
    with pytest.raises(DataError) as problem:
        read_header(found.train[0])
    return str(problem.value)


def test_dicom_missing_slice(tmp_path: Path) -> None:
    dicom(tmp_path / "images/p", np.concatenate([VOLUME, VOLUME], 2), skip=(3,))
    message = series_error(tmp_path)
    assert "5 mm between slice_003.dcm and slice_006.dcm, 2.5 mm elsewhere: a slice is missing" in message


def test_dicom_doubled_slices_and_mixed_series(tmp_path: Path) -> None:
    dicom(tmp_path / "images/p", VOLUME, ImagePositionPatient=[0.0, 0.0, 5.0])
    assert "lie in one place; take out doubles" in series_error(tmp_path)
    dicom(tmp_path / "images/p", VOLUME[..., :1])
    assert "holds 2 series" in series_error(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ImagePositionPatient": None}, "has no ImagePositionPatient"),
        ({"NumberOfFrames": 3}, "several frames or colours in one file; convert"),
    ],
)
def test_dicom_slices_that_cannot_be_placed(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    dicom(tmp_path / "images/p", VOLUME, **changes)
    assert words in series_error(tmp_path)


def test_dicom_gantry_tilt_is_sheared(tmp_path: Path) -> None:
    dicom(tmp_path / "images/p", VOLUME, ImageOrientationPatient=[1, 0, 0, 0, np.cos(0.3), np.sin(0.3)])
    assert "the grid is sheared: array axes 1 and 2" in series_error(tmp_path)


def test_dicom_files_that_are_none(tmp_path: Path) -> None:
    touch(tmp_path / "images/p/1.dcm")
    assert "not a DICOM file" in series_error(tmp_path) or "damaged" in series_error(tmp_path)


def test_dicom_needs_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "images/p/1.dcm")
    found = pool(tmp_path, format="dicom", classes=TWO, test_fraction=0)
    importing = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "pydicom":
            raise ModuleNotFoundError(name)
        return importing(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.delitem(sys.modules, "pydicom", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingPackageError, match=r"pip install 'dal-dense\[dicom\]'"):
        read_header(found.train[0])
