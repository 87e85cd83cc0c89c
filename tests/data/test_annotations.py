import json

import numpy as np
import pytest
from PIL import Image

from endofm_lab.data.prepare.annotations import (
    AnnotationError,
    Box,
    fit_boxes,
    read_cholect50,
    read_coco,
    read_counted_lines,
    read_csv_boxes,
    read_frame_labels,
    read_mask,
    read_named_lines,
    read_polyp_json,
    read_voc,
    read_yolo,
)


def written(tmp_path, text, name="file.txt"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_voc_boxes_are_read_with_their_class(tmp_path):
    box = "<bndbox><xmin>1</xmin><ymin>2</ymin><xmax>30</xmax><ymax>40</ymax></bndbox>"
    item = f"<object><name>adenomatous</name>{box}</object>"
    path = written(tmp_path, f"<annotation><filename>other.jpg</filename>{item}{item}</annotation>")
    assert read_voc(path) == [Box("adenomatous", 1, 2, 30, 40)] * 2
    assert read_voc(written(tmp_path, "<annotation/>")) == []


@pytest.mark.parametrize("text", ["", "not xml", "<annotation><object><name>a</name></object></annotation>"])
def test_a_broken_voc_file_is_an_error_that_names_it(text, tmp_path):
    with pytest.raises(AnnotationError, match=r"file\.txt"):
        read_voc(written(tmp_path, text))


def test_voc_files_cannot_pull_in_other_files(tmp_path):
    secret = written(tmp_path, "secret", "secret.txt")
    doctype = f'<!DOCTYPE a [<!ENTITY x SYSTEM "file://{secret}">]>'
    item = "<object><name>&x;</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></object>"
    with pytest.raises(AnnotationError, match="Not an XML file"):
        read_voc(written(tmp_path, f"{doctype}<annotation>{item}</annotation>"))


def test_yolo_boxes_are_centre_and_size_in_fractions(tmp_path):
    path = written(tmp_path, "1 0.5 0.25 0.2 0.1\n\n0 0.1 0.1 0.2 0.2\n")
    boxes = read_yolo(path, {"0": "a", "1": "b"})
    assert [box.label for box in boxes] == ["b", "a"]
    corners = [(box.x1, box.y1, box.x2, box.y2) for box in boxes]
    assert np.allclose(corners, [(0.4, 0.2, 0.6, 0.3), (0.0, 0.0, 0.2, 0.2)])
    assert read_yolo(written(tmp_path, ""), {}) == []
    with pytest.raises(AnnotationError, match=r"line 1: Class 7 is not among the recipe's 1 classes"):
        read_yolo(written(tmp_path, "7 0.5 0.5 0.1 0.1"), {"0": "a"})
    with pytest.raises(AnnotationError, match="line 2: Expected `class x y width height`"):
        read_yolo(written(tmp_path, "0 0.5 0.5 0.1 0.1\n0 0.5"), {})


def test_coco_boxes_are_corner_and_size_by_file_name(tmp_path):
    data = {
        "images": [{"id": 3, "file_name": "case1/7.jpg"}],
        "categories": [{"id": 1, "name": "polyp"}],
        "annotations": [{"image_id": 3, "category_id": 1, "bbox": [10, 20, 5, 6]}],
    }
    assert list(read_coco(written(tmp_path, json.dumps(data)))) == [("case1/7.jpg", Box("polyp", 10, 20, 15, 26))]
    data["annotations"][0]["image_id"] = 4
    with pytest.raises(AnnotationError, match="Not a COCO file"):
        list(read_coco(written(tmp_path, json.dumps(data))))


def test_lines_with_a_count_must_have_that_many_boxes(tmp_path):
    assert read_counted_lines(written(tmp_path, "0\n")) == []
    assert read_counted_lines(written(tmp_path, "2\n1 2 3 4\n5 6 7 8\n"))[1] == Box("polyp", 5, 6, 7, 8)
    with pytest.raises(AnnotationError, match="announces 2 boxes and has 1"):
        read_counted_lines(written(tmp_path, "2\n1 2 3 4\n"))
    with pytest.raises(AnnotationError, match="the number of boxes is None"):
        read_counted_lines(written(tmp_path, ""))


def test_named_lines_may_hold_no_one_or_several_boxes(tmp_path):
    path = written(tmp_path, "a.jpg 1,2,3,4,0 5,6,7,8,1\nb.jpg\nc.jpg 9,9,10,10,0\n")
    boxes = [(name, box.label, box.x1) for name, box in read_named_lines(path, {"0": "polyp"})]
    assert boxes == [("a.jpg", "polyp", 1), ("a.jpg", "1", 5), ("c.jpg", "polyp", 9)]


def test_polyp_json_and_csv_boxes(tmp_path):
    data = {"cju1": {"height": 5, "width": 6, "bbox": [{"label": "polyp", "xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}]}}
    assert list(read_polyp_json(written(tmp_path, json.dumps(data)))) == [("cju1", Box("polyp", 1, 2, 3, 4))]
    columns = {"label": "kind", "x1": "l", "y1": "t", "x2": "r", "y2": "b"}
    path = written(tmp_path, "\ufeffimage;kind;l;t;r;b\na;polyp;1;2;3;4\nb;none;;;;\n")
    assert [(row["image"], box.x2) for row, box in read_csv_boxes(path, columns, ";")] == [("a", 3.0)]
    with pytest.raises(AnnotationError, match="line 2: a corner is 'x', not a number"):
        list(read_csv_boxes(written(tmp_path, "image,kind,l,t,r,b\na,polyp,x,2,3,4\n"), columns))
    with pytest.raises(AnnotationError, match="line 3: The line has 5 columns, the heading 6"):
        list(read_csv_boxes(written(tmp_path, "image,kind,l,t,r,b\na,p,1,2,3,4\na,p,1,2,3\n"), columns))


def test_cholect50_gives_phase_instruments_triplets_and_tip_boxes_per_frame(tmp_path):
    categories = {
        "phase": {"2": "clipping"},
        "instrument": {"0": "grasper", "4": "clipper"},
        "triplet": {"17": "grasper,retract,gallbladder", "80": "clipper,clip,cystic_duct"},
    }
    tail = [1, 2, -1, -1, -1, -1, -1, 2]
    annotations = {
        "0": [[17, 0, 1, 0.25, 0.5, 0.25, 0.25, *tail], [80, 4, 1, -1, -1, -1, -1, *tail]],
        "1": [[-1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 2]],
        "2": [],
    }
    path = written(tmp_path, json.dumps({"categories": categories, "annotations": annotations}))
    facts, boxes = read_cholect50(path)
    assert facts["0"]["instruments"] == "grasper|clipper"
    assert facts["0"]["triplets"] == "grasper,retract,gallbladder|clipper,clip,cystic_duct"
    assert facts["1"] == {"phase": "clipping", "instruments": "", "triplets": ""}
    assert facts["2"]["phase"] == ""
    assert boxes["0"] == [Box("grasper", 0.25, 0.5, 0.5, 0.75)] and boxes["1"] == []


def test_labels_per_frame_become_stretches_without_gaps(tmp_path):
    path = written(tmp_path, "Frame\tPhase\n0\tA\n1\tA\n2\tB\n3\tB\n4\tA\n")
    assert read_frame_labels(path, fps=2) == [(0.0, 1.0, "A"), (1.0, 2.0, "B"), (2.0, 2.5, "A")]
    sparse = written(tmp_path, "Frame\tPhase\n0\tA\n25\tA\n50\tB\n")
    assert read_frame_labels(sparse, fps=25) == [(0.0, 2.0, "A"), (2.0, 2.04, "B")]


@pytest.mark.parametrize(
    ("corners", "clamp", "kept", "field"),
    [
        ((10, 10, 20, 20), 0.0, (10, 10, 20, 20), None),
        ((0, 0, 100, 50), 0.0, (0, 0, 100, 50), None),
        ((-0.4, 0, 100.4, 50), 0.0, (0, 0, 100, 50), None),  # rounding is not reported
        ((50, 10, 101.2, 20), 0.02, (50, 10, 100, 20), "clamped"),
        ((50, 10, 101.2, 20), 0.01, None, "outside"),
        ((50, 10, 101.2, 20), 0.0, None, "outside"),
        ((-3, 10, 20, 20), 0.02, None, "outside"),
        ((10, 10, 10, 20), 0.0, None, "empty"),
        ((20, 10, 10, 20), 0.0, None, "empty"),
        ((10, 10, float("nan"), 20), 0.5, None, "outside"),
    ],
)
def test_boxes_are_fitted_into_a_picture_of_100_by_50(corners, clamp, kept, field):
    fitted = fit_boxes([Box("p", *corners)], 100, 50, clamp)
    assert [(box.x1, box.y1, box.x2, box.y2) for box in fitted.boxes] == ([kept] if kept else [])
    for name in ("clamped", "outside", "empty"):
        assert len(getattr(fitted, name)) == (name == field)


def test_masks_of_every_kind_of_picture_are_read_alike(tmp_path):
    truth = np.zeros((20, 30), bool)
    truth[4:12, 5:25] = True
    grey = Image.fromarray(np.uint8(truth) * 255)
    kinds = {
        "bit.png": Image.fromarray(truth),
        "grey.png": grey,
        "rgb.png": grey.convert("RGB"),
        "palette.png": grey.convert("P"),
        "tiff.tif": grey,
        "ones.png": Image.fromarray(np.uint8(truth)),
    }
    for name, image in kinds.items():
        image.save(tmp_path / name)
        mask = read_mask(tmp_path / name)
        assert (mask.mask == truth).all() and mask.levels == 2, name
        assert mask.plain == (name != "ones.png")
    grey.save(tmp_path / "lossy.jpg", quality=40)
    lossy = read_mask(tmp_path / "lossy.jpg", binary_above=127)
    assert lossy.levels > 2 and not lossy.plain
    assert (lossy.mask == truth).mean() > 0.99
    Image.fromarray(np.zeros((20, 30), np.uint8)).save(tmp_path / "empty.png")
    assert read_mask(tmp_path / "empty.png").plain
    with pytest.raises(AnnotationError, match=r"no\.png: Not a readable mask"):
        read_mask(written(tmp_path, "no", "no.png"))
