"""Tables are cut into rows and cells, and each row knows where in the text it stands."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farm.tables import BadTable, plain_name, table_of

CELLS = st.text(alphabet='ab ,;\t"\r\n', max_size=6)


def rows_of(text):
    """Return a table's rows."""
    return list(table_of(text).rows)


@given(st.lists(st.lists(CELLS, min_size=2, max_size=4), max_size=6), st.sampled_from(["\n", "\r\n"]))
def test_rows_are_the_whole_text(rows, end):
    """Whatever stands in quotes, the rows in their order are all of it, and each alone reads as itself."""
    text = io.StringIO()
    csv.writer(text, lineterminator=end, quoting=csv.QUOTE_ALL).writerows([["x", "y", "z"], *rows])
    found = rows_of(text.getvalue())
    assert [row.cells for row in found[1:]] == rows
    assert "".join(text.getvalue()[row.start : row.end] for row in found) == text.getvalue()


def test_rows_know_the_line_they_begin_in():
    """As an editor counts them, Excel's hint among them."""
    text = 'sep=;\r\nprompt;image\r\n"a\nb";c\n\nd;e'
    assert [(row.number, row.cells) for row in rows_of(text)] == [
        (2, ["prompt", "image"]),
        (3, ["a\nb", "c"]),
        (5, []),
        (6, ["d", "e"]),
    ]
    assert table_of(text).delimiter == ";"


@pytest.mark.parametrize(("text", "row"), [('a,b\n"x" y,z\n', 2), ("sep=,\na\n" + "x" * 500_001, 3), ('a\n\n"b', 3)])
def test_what_cannot_be_read_is_told_with_its_line(text, row):
    """Quotes that do not match, and lines that no table has."""
    with pytest.raises(BadTable) as raised:
        rows_of(text)
    assert raised.value.row == row


@pytest.mark.parametrize(("column", "name"), [(" Mask Image ", "mask_image"), ("CFG-Scale", "cfg_scale"), ("n", "n")])
def test_names_of_columns_are_read_as_ours(column, name):
    """However a spreadsheet writes them."""
    assert plain_name(column) == name
