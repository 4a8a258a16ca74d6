"""Recordings: every malformed file is refused with its name, row and expectation; good ones keep each bit."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from protocol.errors import DataError
from protocol.input_schema import InputSchema
from protocol.recording import Recording, parse

SCHEMA = InputSchema("timeseries", ("x", "y"), 100.0, ("idle", "on"))


def read(text: str | bytes, name: str = "pump.csv") -> Recording:
    content = text.encode() if isinstance(text, str) else text
    return parse(io.BytesIO(content), name, SCHEMA)


def test_columns_come_in_schema_order_and_others_are_ignored() -> None:
    recording = read("timestamp,y,note,label,x\nnoon,2,nan,on,1\n,4.5,,,-3e-2\n")
    assert recording.name == "pump.csv"
    assert recording.samples.dtype == np.float32
    assert recording.samples.tolist() == np.array([[1, 2], [-0.03, 4.5]], np.float32).tolist()
    assert recording.labels.tolist() == [1, -1]
    assert recording.labels.dtype == np.int64


def test_a_file_without_label_column_is_unlabelled() -> None:
    assert read("x,y\n1,2\n").labels.tolist() == [-1]


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffx,y,label\n1,2,on\n3,4,\n",
        "x,y,label\r\n1,2,on\r\n3,4,\r\n\r\n\r\n",
        "x,y,label\n1,2,on\n3,4,",
        'x,"y",label\n"1",2,"on"\n3,4,""\n',
        " x , y,label\n 1 , 2, on \n3,4, \n",
    ],
    ids=["byte order mark", "windows line ends", "no last line end", "quoted", "spaces"],
)
def test_spellings_of_the_same_recording_are_equal(text: str) -> None:
    recording = read(text)
    assert recording.samples.tolist() == [[1, 2], [3, 4]]
    assert recording.labels.tolist() == [1, -1]


@pytest.mark.parametrize(
    ("text", "place", "expectation"),
    [
        ("", "line 1", "expected a header"),
        ("\n\n", "line 1", "expected a header"),
        ("x,y\n", "line 2", "expected at least one row"),
        ("x,z\n1,2\n", "line 1", "expected a column 'y', found x, z"),
        ("x,y,x\n1,2,3\n", "line 1: column 'x'", "expected once"),
        ("x,y\n1,2\n1,abc\n", "line 3: column 'y'", "expected a finite number, got 'abc'"),
        ("x,y\n1,2\nnan,3\n", "line 3: column 'x'", "expected a finite number, got 'nan'"),
        ("x,y\n1,2\n1,-inf\n", "line 3: column 'y'", "expected a finite number, got '-inf'"),
        ("x,y\n1,1e39\n", "line 2: column 'y'", "range of float32"),
        ("x,y\n-3.4028236e38,1\n", "line 2: column 'x'", "range of float32"),
        ("x,y\n1_0,1\n", "line 2: column 'x'", "expected a finite number"),
        ("x,y\n1,\n", "line 2: column 'y'", "expected a finite number, the cell is empty"),
        ("x,y\n1,2\n1,2,3\n", "line 3", "expected 2 cells as in the header, got 3"),
        ("x,y\n1,2\n1\n", "line 3", "expected 2 cells as in the header, got 1"),
        ("x,y\n1,2\n\n1,2\n", "line 3", "expected 2 cells"),
        ("x,y,label\n1,2,on\n1,2,off\n", "line 3: column 'label'", "expected a class (idle, on)"),
        (b"x,y\n1,2\n1,\xff\n", "line 3", "expected text in UTF-8, got byte 0xff"),
        ('x,y\n1,"2\n3,4\n', "line 2", "expected comma-separated cells on one line"),
    ],
)
def test_malformed_csv_names_file_place_and_expectation(
    text: str | bytes, place: str, expectation: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(text)
    assert str(caught.value).startswith(f"pump.csv: {place}")
    assert expectation in str(caught.value)


def test_an_error_far_into_a_long_file_names_its_line() -> None:
    lines = ["x,y,label"] + ["1.25,2.5,on"] * 60_000
    lines[50_000] = "1.25,oops,on"
    with pytest.raises(DataError, match=r"line 50001: column 'y': expected a finite number, got 'oops'"):
        read("\n".join(lines))


def test_a_blank_line_at_a_block_border_keeps_later_line_numbers() -> None:
    text = "x,y\n" + "1,2\n" * 65_535 + "\n" * 10 + "1,2\n"
    with pytest.raises(DataError, match="line 65537: expected 2 cells"):
        read(text)


def test_a_line_without_end_is_refused_before_it_fills_the_memory() -> None:
    with pytest.raises(DataError, match=r"line 1: expected a line of at most"):
        read(b"x" * 3_000_000)


def test_more_rows_than_allowed_are_refused() -> None:
    with pytest.raises(DataError, match=r"pump\.csv: expected at most 2 rows"):
        parse(io.BytesIO(b"x,y\n1,2\n1,2\n1,2\n"), "pump.csv", SCHEMA, max_rows=2)


def test_samples_and_labels_of_different_lengths_are_no_recording() -> None:
    with pytest.raises(ValueError, match=r"pump: expected samples \[rows, channels\] and labels \[rows\]"):
        Recording("pump", np.zeros((3, 2), np.float32), np.zeros(2, np.int64))


def test_the_largest_float32_is_read_plain_and_quoted() -> None:
    largest = float(np.finfo(np.float32).max)
    assert read('x,y\n3.4028235e38,0\n"-3.4028235e38",0\n').samples[:, 0].tolist() == [largest, -largest]


finite = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(2)), elements=finite))
def test_quoted_and_plain_cells_are_read_to_the_same_bits(samples: np.ndarray) -> None:
    rows = [[str(value) for value in row] for row in samples]
    plain = read("x,y\n" + "\n".join(",".join(row) for row in rows))
    quoted = read("x,y\n" + "\n".join(",".join(f'"{cell}"' for cell in row) for row in rows))
    assert plain.samples.tobytes() == samples.tobytes()
    assert quoted.samples.tobytes() == samples.tobytes()


@given(st.binary(max_size=200))
def test_hostile_bytes_end_in_a_data_error_or_a_recording(content: bytes) -> None:
    for prefix in (b"", b"x,y,label\n"):
        try:
            recording = read(prefix + content)
        except DataError:
            continue
        assert np.isfinite(recording.samples).all()


def parquet(columns: dict[str, object]) -> bytes:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


def test_parquet_gives_the_same_recording_as_csv() -> None:
    recording = read(parquet({"label": ["on", None, ""], "y": [2, 4, 6], "x": [1.5, 3, 5]}), "pump.parquet")
    assert recording.samples.tolist() == [[1.5, 2], [3, 4], [5, 6]]
    assert recording.labels.tolist() == [1, -1, -1]


@pytest.mark.parametrize(
    ("columns", "place", "expectation"),
    [
        ({"x": [1.0]}, "", "expected a column 'y'"),
        ({"x": ["a"], "y": [1.0]}, "column 'x'", "expected numbers, got string"),
        ({"x": [1.0, None], "y": [1, 2]}, "row 2: column 'x'", "expected a finite number, the cell is empty"),
        ({"x": [1.0, float("inf")], "y": [1, 2]}, "row 2: column 'x'", "expected a finite number, got inf"),
        ({"x": [1.0], "y": [1], "label": ["off"]}, "row 1: column 'label'", "expected a class (idle, on)"),
        ({"x": [1.0], "y": [1], "label": [1]}, "column 'label'", "expected text, got int64"),
        ({"x": [], "y": []}, "", "expected"),
    ],
)
def test_malformed_parquet_names_file_place_and_expectation(
    columns: dict[str, object], place: str, expectation: str
) -> None:
    with pytest.raises(DataError) as caught:
        read(parquet(columns), "pump.parquet")
    assert str(caught.value).startswith(f"pump.parquet: {place}")
    assert expectation in str(caught.value)


def test_bytes_that_are_no_parquet_are_refused() -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match=r"pump.parquet: expected a readable Parquet file"):
        read(b"x,y\n1,2\n", "pump.parquet")


def test_without_pyarrow_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r'pip install "graftwork\[agent-parquet\]"'):
        read(b"", "pump.parquet")
