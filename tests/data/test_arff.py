"""Mulan data sets: ARFF and XML."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from jaxmlcl.data import ArraySource, open_source
from jaxmlcl.data.arff import read_label_names
from jaxmlcl.errors import DataError

XML = """<?xml version="1.0" encoding="utf-8"?>
<labels xmlns="http://mulan.sourceforge.net/labels">
<label name="sky"></label>
<label name="sea"></label>
</labels>"""

HEADER = """@relation tiny
@attribute length numeric
@attribute sea {0,1}
@attribute lit {0,1}
@attribute sky {0,1}
@data
"""


def write(folder: Path, rows: str, xml: str = XML, name: str = "tiny") -> Path:
    (folder / f"{name}.xml").write_text(xml)
    (folder / f"{name}.arff").write_text(rows)
    return folder / f"{name}.arff"


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as error:
        open_source(path)
    return str(error.value).replace(f"{path.parent}/", "")


def test_labels_come_from_the_xml_and_not_from_the_position(tmp_path) -> None:
    source = open_source(write(tmp_path, HEADER + "1.5,1,0,0\n-2,0,1,1\n"))
    arrays = source.arrays()
    assert source.metadata.label_names == ("sea", "sky")
    assert source.feature_names == ("length", "lit")
    np.testing.assert_array_equal(arrays["inputs"], [[1.5, 0], [-2, 1]])
    np.testing.assert_array_equal(arrays["labels"], [[1, 0], [0, 1]])
    assert source.metadata.name == "tiny"
    assert source.metadata.input_dtype == "float32"


def test_sparse_rows_are_dense_rows_with_zeros_left_out(tmp_path) -> None:
    dense = open_source(write(tmp_path, HEADER + "1.5,1,0,0\n0,0,0,0\n-2,0,1,1\n"))
    rows = "{0 1.5, 1 1}\n{ }\n{0 -2,2 1,3 1}\n"
    sparse = open_source(write(tmp_path, HEADER + rows, name="sparse"))
    assert dense.metadata.fingerprint == sparse.metadata.fingerprint


def test_a_sparse_row_leaves_out_the_first_declared_value(tmp_path) -> None:
    rows = """@relation tiny
    @attribute sea {0,1}
    @attribute sky {0,1}
    @attribute upside {1,0}
    @attribute colour {red,blue}
    @data
    {0 1}
    {2 0,3 blue}
    """
    inputs = open_source(write(tmp_path, rows)).arrays()["inputs"]
    np.testing.assert_array_equal(inputs, [[1, 1, 0], [0, 0, 1]])


def test_quotes_escapes_comments_tabs_and_cases(tmp_path) -> None:
    rows = r"""% comment, with @data
@RELATION 'a set: "x" {0,1}'

@ATTRIBUTE	'dark sky'	{0,1}
@Attribute "it's" REAL
@attribute 'it\'s night' { 0 , 1 }
@attribute kind {'a,b', "c d" ,e}
@attribute plain{0,1}
% comment
@Data
1 , 2.5e-1,0,'a,b',1
% comment

0,	-3 ,1 , "c d",0
"""
    xml = """<labels><label name="it's night"/><label name="dark sky"/></labels>"""
    path = write(tmp_path, rows, xml)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    source = open_source(path)
    assert source.metadata.label_names == ("dark sky", "it's night")
    assert source.feature_names == ("it's", "kind=a,b", "kind=c d", "kind=e", "plain")
    np.testing.assert_array_equal(source.arrays()["labels"], [[1, 0], [0, 1]])
    np.testing.assert_array_equal(source.arrays()["inputs"], [[0.25, 1, 0, 0, 1], [-3, 0, 1, 0, 0]])


def test_names_quoted_inside_the_xml_are_found(tmp_path) -> None:
    rows = HEADER.replace("sea", r"'the sea\'s'") + "1,1,0,0\n"
    xml = r"""<labels><label name="'the sea\'s'"/><label name="sky"/></labels>"""
    assert open_source(write(tmp_path, rows, xml)).metadata.label_names == ("the sea's", "sky")


def test_numeric_labels(tmp_path) -> None:
    rows = HEADER.replace("sea {0,1}", "sea numeric") + "1,1.0,0,0\n2,0,1,1\n"
    np.testing.assert_array_equal(
        open_source(write(tmp_path, rows)).arrays()["labels"], [[1, 0], [0, 1]]
    )
    message = refusal(write(tmp_path, rows + "3,2,0,0\n"))
    assert message == "tiny.arff, line 9, label 'sea': 2.0 is not 0 or 1"


def test_nested_labels_are_flattened(tmp_path) -> None:
    xml = """<labels xmlns="http://mulan.sourceforge.net/labels"><label name="world">
    <label name="water"><label name="sea"/></label></label><label name="sky"/></labels>"""
    (tmp_path / "a.xml").write_text(xml)
    assert read_label_names(tmp_path / "a.xml") == ["world", "water", "sea", "sky"]


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (["tiny-train.xml", "tiny.xml", "other.xml"], "tiny-train.xml"),
        (["tiny.xml", "other.xml"], "tiny.xml"),
        (["tin.xml", "tiny.xml", "t.xml"], "tiny.xml"),
        (["other.xml"], "other.xml"),
        (["LABELS.XML"], "LABELS.XML"),
        (["one.xml", "two.xml"], None),
        (["tin.xml", "tiny-tr.xml"], None),
        ([], None),
    ],
)
def test_which_xml_is_taken(tmp_path, files, chosen) -> None:
    (tmp_path / "tiny-train.arff").write_text(HEADER + "1,1,0,0\n")
    for file in files:
        names = ("sea",) if file == chosen else ("lit",)
        content = "".join(f'<label name="{name}"/>' for name in names)
        (tmp_path / file).write_text(f"<labels>{content}</labels>")
    if chosen:
        assert open_source(tmp_path / "tiny-train.arff").metadata.label_names == ("sea",)
    else:
        assert "name one with '?xml=PATH'" in refusal(tmp_path / "tiny-train.arff")


def test_a_named_xml_is_sought_beside_the_rows_and_then_in_the_root(tmp_path) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    write(folder, HEADER + "1,1,0,0\n")
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "short.xml").write_text('<labels><label name="sea"/></labels>')
    source = open_source("set/tiny.arff?xml=lists/short.xml", root=tmp_path)
    assert source.metadata.label_names == ("sea",)
    with pytest.raises(DataError) as error:
        open_source("set/tiny.arff?xml=lists/long.xml", root=tmp_path)
    assert str(folder / "lists" / "long.xml") in str(error.value)
    assert str(tmp_path / "lists" / "long.xml") in str(error.value)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("1,2,0,0", "tiny.arff, line 8, attribute 'sea': '2' is not one of {0,1}"),
        ("1,yes,0,0", "tiny.arff, line 8, attribute 'sea': 'yes' is not one of {0,1}"),
        ("1,0,3,0", "tiny.arff, line 8, attribute 'lit': '3' is not one of {0,1}"),
        ("?,0,0,0", "tiny.arff, line 8, attribute 'length': missing value"),
        ("1,0,0,?", "tiny.arff, line 8, attribute 'sky': missing value"),
        ("1,,0,0", "tiny.arff, line 8, attribute 'sea': missing value"),
        ("nan,0,0,0", "tiny.arff, line 8, feature 'length': nan is not a number"),
        ("1e39,0,0,0", "tiny.arff, line 8, feature 'length': inf is outside the range of float32"),
        ("long,0,0,0", "tiny.arff, line 8, attribute 'length': 'long' is not a number"),
        ("1,0,0", "tiny.arff, line 8: expected 4 values: '1,0,0'"),
        ("1,0,0,0,0", "tiny.arff, line 8: expected 4 values"),
        ("1,0,0,'0", "tiny.arff, line 8: not an ARFF row"),
        (r"1,0,0,'\q'", "tiny.arff, line 8: not an ARFF row"),
        ("{0 1}", "tiny.arff, line 8: sparse {...} and dense rows are mixed"),
    ],
)
def test_bad_dense_rows_are_refused(tmp_path, row, message) -> None:
    path = write(tmp_path, HEADER + f"1,0,0,0\n{row}\n1,1,1,1\n")
    assert refusal(path).startswith(message)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{1 2}", "tiny.arff, line 8, attribute 'sea': '2' is not one of {0,1}"),
        ("{4 1}", "tiny.arff, line 8: expected column numbers below 4: '{4 1}'"),
        ("{0 ?}", "tiny.arff, line 8, attribute 'length': missing value"),
        ("{1 0, 1 1}", "tiny.arff, line 8: a column is given twice"),
        ("{0 1}, {5}", "tiny.arff, line 8: not an ARFF row"),
        ("{0 1", "tiny.arff, line 8: not an ARFF row"),
        ("{-1 1}", "tiny.arff, line 8: not an ARFF row"),
        ("1,0,0,0", "tiny.arff, line 8: sparse {...} and dense rows are mixed"),
    ],
)
def test_bad_sparse_rows_are_refused(tmp_path, row, message) -> None:
    path = write(tmp_path, HEADER + f"{{1 1}}\n{row}\n")
    assert refusal(path).startswith(message)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("", "tiny.arff: no @data line"),
        (HEADER, "tiny.arff: no rows after @data on line 6"),
        (HEADER.replace("@data", ""), "tiny.arff: no @data line"),
        ("@relation a\n@data\n1\n", "tiny.arff, line 2: @data before any @attribute"),
        ("x,y\n1,2\n", "tiny.arff, line 1: @relation, @attribute or @data expected, found 'x,y'"),
        (HEADER.replace("lit", "sea"), "tiny.arff, line 4: attribute 'sea' is already declared on"),
        (
            HEADER.replace("numeric", "string"),
            "tiny.arff, line 2: attribute 'length' has type 'str",
        ),
        (
            HEADER.replace("numeric", "date 'yyyy'"),
            "tiny.arff, line 2: attribute 'length' has type",
        ),
        (HEADER.replace(" numeric", ""), "tiny.arff, line 2: expected '@attribute NAME TYPE'"),
        (HEADER.replace("length", "'length"), "tiny.arff, line 2: expected '@attribute NAME TYPE'"),
        (HEADER.replace("lit {0,1}", "lit {0,1"), "tiny.arff, line 4: attribute 'lit' has type"),
        (HEADER.replace("lit {0,1}", "lit {0,,1}"), "tiny.arff, line 4: the values of attribute"),
        (HEADER.replace("lit {0,1}", "lit {}"), "tiny.arff, line 4: the values of attribute"),
        (HEADER.replace("lit {0,1}", "lit {a b}"), "tiny.arff, line 4: the values of attribute"),
        (HEADER.replace("lit {0,1}", "lit {0,0}"), "tiny.arff, line 4: attribute 'lit' declares a"),
        (
            HEADER.replace("sky {0,1}", "sky {no,yes}"),
            "tiny.arff, line 5: label 'sky' has the values 'no,yes'; labels are {0,1}",
        ),
        (
            HEADER.replace("sky", "skye"),
            "tiny.xml: 1 label(s) are not attributes of tiny.arff, the first is 'sky' "
            "(did you mean 'skye'?)",
        ),
        (
            "@relation a\n@attribute sea {0,1}\n@attribute sky {0,1}\n@data\n0,1\n",
            "tiny.arff: every attribute is a label of tiny.xml",
        ),
    ],
)
def test_bad_headers_are_refused(tmp_path, rows, message) -> None:
    assert refusal(write(tmp_path, rows)).startswith(message)


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ("", "tiny.xml, line 1: not well-formed XML"),
        ("<labels>\n<label name='sea'>\n</labels>", "tiny.xml, line 3: not well-formed XML"),
        ("<labels/>", "tiny.xml: lists no labels"),
        ("<label name='sea'/>", "tiny.xml: element <label> found; a list of labels is <labels>"),
        ("<labels><lable name='sea'/></labels>", "tiny.xml: element <lable> found"),
        ("<labels><label nam='sea'/></labels>", "tiny.xml: label number 1 has no name"),
        ("<labels><label name=''/></labels>", "tiny.xml: label number 1 has no name"),
        (
            "<labels><label name='sea'/><label name='sea'/></labels>",
            "tiny.xml: label 'sea' is listed more than once",
        ),
        ("<?xml version='1.0' encoding='utf-9'?><labels/>", "tiny.xml: not readable XML"),
    ],
)
def test_bad_lists_of_labels_are_refused(tmp_path, xml, message) -> None:
    assert refusal(write(tmp_path, HEADER + "1,0,0,0\n", xml)).startswith(message)


def test_other_encodings_are_refused_with_the_line(tmp_path) -> None:
    path = write(tmp_path, HEADER)
    path.write_bytes(HEADER.replace("lit", "forêt").encode("latin-1"))
    assert refusal(path) == "tiny.arff, line 4: not UTF-8 text; save the file as UTF-8"


def test_a_damaged_declaration_of_many_values_is_refused_at_once(tmp_path) -> None:
    values = ",".join(f"v{i}" for i in range(2000))
    for declared in (values, values + ",a b}", values + "'}", "'" + values + "}"):
        start = time.process_time()
        message = refusal(write(tmp_path, HEADER.replace("numeric", "{" + declared)))
        assert "line 2: " in message
        assert len(message) < 300
        assert time.process_time() - start < 1


def opened_with_means(path: Path) -> ArraySource:
    return open_source(f"{path}?missing=mean")


def test_missing_features_become_the_mean_of_what_is_known(tmp_path) -> None:
    path = write(tmp_path, HEADER + "1,1,0,0\n?,0,1,1\n4,0,?,1\n,1,0,0\n")
    source = opened_with_means(path)
    expected = np.array([[1, 0], [2.5, 1], [4, 1 / 3], [2.5, 0]], np.float32)
    np.testing.assert_array_equal(source.arrays()["inputs"], expected)
    assert "line 8, attribute 'length': missing value" in refusal(path)


def test_missing_features_of_sparse_rows_and_categories(tmp_path) -> None:
    rows = HEADER.replace("lit {0,1}", "lit {red,blue}")
    path = write(tmp_path, rows + "{0 2, 2 blue}\n{0 ?, 1 1}\n{2 ?}\n{0 4, 3 1}\n")
    source = opened_with_means(path)
    assert source.feature_names == ("length", "lit=red", "lit=blue")
    third = np.float32(1 / 3)
    np.testing.assert_array_equal(
        source.arrays()["inputs"],
        [[2, 0, 1], [2, 1, 0], [0, 2 * third, third], [4, 1, 0]],
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,?,0,0\n", "tiny.arff, line 7, attribute 'sea': missing value"),
        ("?,0,0,0\n?,0,1,0\n", "tiny.arff: feature 'length' has no value in any row"),
        ("x,0,0,0\n", "tiny.arff, line 7, attribute 'length': 'x' is not a number"),
    ],
)
def test_what_no_mean_can_mend_is_refused(tmp_path, rows, message) -> None:
    with pytest.raises(DataError, match=message):
        opened_with_means(write(tmp_path, HEADER + rows))
    with pytest.raises(DataError, match="missing='zero'; write missing=mean"):
        open_source(f"{write(tmp_path, HEADER + rows)}?missing=zero")


SETS = [  # name, training rows, test rows, features, labels, labels per row
    ("scene", "scene-{}", 1211, 1196, 294, 6, 1.07),
    ("yeast", "yeast-{}", 1500, 917, 103, 14, 4.24),
    ("emotions", "emotions-{}", 391, 202, 72, 6, 1.87),
    ("enron", "enron-{}", 1123, 579, 1001, 53, 3.38),
    ("medical", "medical-{}", 333, 645, 1449, 45, 1.25),
    ("corel5k", "Corel5k-{}-sparse", 4500, 500, 499, 374, 3.52),
    ("bibtex", "bibtex-{}", 4880, 2515, 1836, 159, 2.40),
    ("delicious", "delicious-{}", 12920, 3185, 500, 983, 19.02),
]


@pytest.mark.parametrize(
    ("folder", "name", "training", "test", "features", "labels", "cardinality"),
    SETS,
    ids=[row[0] for row in SETS],
)
def test_mulan_sets(
    shared_data, folder, name, training, test, features, labels, cardinality
) -> None:
    base = shared_data / "vectors" / folder
    parts = [open_source(base / f"{name.format(part)}.arff") for part in ("train", "test")]
    assert [len(part) for part in parts] == [training, test]
    for part in parts:
        assert (part.metadata.num_features, part.metadata.num_labels) == (features, labels)
    assert parts[0].metadata.label_names == parts[1].metadata.label_names
    assert parts[0].feature_names == parts[1].feature_names
    positives = sum(int(part.arrays()["labels"].sum()) for part in parts)
    assert round(positives / (training + test), 2) == cardinality


def test_scene_values(shared_data) -> None:
    path = shared_data / "vectors" / "scene" / "scene-train.arff"
    source = open_source(path)
    text = path.read_text().splitlines()
    first = text[next(i for i, line in enumerate(text) if line.strip().lower() == "@data") + 1]
    values = np.array(first.split(","), float)
    np.testing.assert_array_equal(source[0]["inputs"], values[:294].astype(np.float32))
    np.testing.assert_array_equal(source[0]["labels"], values[294:])
    assert source.metadata.label_names[:2] == ("Beach", "Sunset")
