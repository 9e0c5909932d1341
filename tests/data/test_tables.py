"""Reading and writing tables: every format there and back, every bad file one clear sentence."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from emfc.data import check_table_target, column_names, read_matrix, read_table, write_table
from emfc.errors import UserError

SITES = {"a": (), "b": (3,), "c": (2, 2)}
ENDINGS = [".npz", ".npy", ".csv", ".parquet"]


def _example(rows: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(rows, *shape, generator=generator, dtype=torch.float64) for name, shape in SITES.items()}


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back_exactly(tmp_path: Path, ending: str) -> None:
    data = _example()
    write_table(tmp_path / f"t{ending}", data)
    back = read_table(tmp_path / f"t{ending}", SITES)
    assert list(back) == list(SITES)
    for name, values in data.items():
        assert torch.equal(back[name], values)
    assert [path.name for path in tmp_path.iterdir()] == [f"t{ending}"]


@pytest.mark.parametrize("ending", ENDINGS)
def test_integers_and_float32_are_kept(tmp_path: Path, ending: str) -> None:
    data = {"k": torch.arange(6).reshape(3, 2), "z": torch.tensor([0.1, 0.2, 1e-30], dtype=torch.float32)}
    write_table(tmp_path / f"t{ending}", data)
    back = read_table(tmp_path / f"t{ending}", {"k": (2,), "z": ()})
    assert torch.equal(back["k"], data["k"].double())
    assert torch.equal(back["z"].float(), data["z"])


@pytest.mark.parametrize("ending", [".csv", ".parquet", ".npz"])
def test_the_order_of_columns_does_not_matter(tmp_path: Path, ending: str) -> None:
    data = _example()
    write_table(tmp_path / f"t{ending}", dict(reversed(list(data.items()))))
    back = read_table(tmp_path / f"t{ending}", SITES)
    assert list(back) == list(SITES)
    assert torch.equal(back["c"], data["c"])


def test_flat_examples(tmp_path: Path) -> None:
    flat = np.arange(16.0).reshape(2, 8)
    np.save(tmp_path / "t.npy", flat)
    np.savez(tmp_path / "t.npz", x=flat)
    for ending in (".npy", ".npz"):
        back = read_table(tmp_path / f"t{ending}", SITES)
        assert back["c"].tolist() == [[[4, 5], [6, 7]], [[12, 13], [14, 15]]]


def test_one_site_may_have_its_own_shape_or_be_flat(tmp_path: Path) -> None:
    images = np.arange(12.0).reshape(3, 2, 2)
    np.savez(tmp_path / "shaped.npz", x=images)
    np.savez(tmp_path / "flat.npz", x=images.reshape(3, 4))
    np.save(tmp_path / "shaped.npy", images)
    for name in ("shaped.npz", "flat.npz", "shaped.npy"):
        assert read_table(tmp_path / name, {"x": (2, 2)})["x"].tolist() == images.tolist()


def test_names_of_columns() -> None:
    assert column_names({"a": (), "c": (1, 2)}) == ["a", "c[0,0]", "c[0,1]"]


def test_blanks_and_quotes_in_names(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"c[0, 1]", c[0] ,"c[0,0]"\n1,2,3\n')
    assert read_table(tmp_path / "t.csv", {"c": (1, 2)}, ignore=["c[0]"])["c"].tolist() == [[[3, 1]]]


def test_a_named_column_may_be_left_out(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", {"a": torch.ones(2), "log_prob": torch.zeros(2)})
    assert list(read_table(tmp_path / "t.csv", {"a": ()}, ignore=["log_prob"])) == ["a"]
    assert list(read_table(tmp_path / "t.csv", {"a": (), "log_prob": ()}, ignore=["log_prob"])) == ["a", "log_prob"]


def test_whole_numbers_first_and_fractions_much_later(tmp_path: Path) -> None:
    lines = ["a", *["1"] * 700_000, "1.5"]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    assert read_table(tmp_path / "t.csv", {"a": ()})["a"][-1] == 1.5


def _csv(text: str | bytes):
    def make(path: Path) -> Path:
        target = path / "bad.csv"
        target.write_bytes(text if isinstance(text, bytes) else text.encode())
        return target

    return make


def _npz(**arrays: object):
    def make(path: Path) -> Path:
        np.savez(path / "bad.npz", **arrays)
        return path / "bad.npz"

    return make


def _npy(array: object):
    def make(path: Path) -> Path:
        np.save(path / "bad.npy", np.asarray(array))
        return path / "bad.npy"

    return make


def _parquet(**columns: list[object]):
    def make(path: Path) -> Path:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.table(columns), path / "bad.parquet")
        return path / "bad.parquet"

    return make


def _raw(name: str, content: bytes):
    def make(path: Path) -> Path:
        (path / name).write_bytes(content)
        return path / name

    return make


def _truncated(path: Path) -> Path:
    np.savez(path / "whole.npz", a=np.ones(500), b=np.ones((500, 2)))
    content = (path / "whole.npz").read_bytes()
    (path / "bad.npz").write_bytes(content[: len(content) // 2])
    return path / "bad.npz"


def _strange_entry(path: Path) -> Path:
    with zipfile.ZipFile(path / "bad.npz", "w") as archive:
        archive.writestr("a.txt", "hello")
    return path / "bad.npz"


def _folder(path: Path) -> Path:
    (path / "bad.csv").mkdir()
    return path / "bad.csv"


BAD = {
    "missing": (lambda path: path / "none.csv", "does not exist"),
    "a folder": (_folder, "is not a file"),
    "unknown ending": (lambda path: path / "none.xlsx", "ending must be one of .npz, .npy, .csv, .parquet"),
    "empty csv": (_csv(""), "is empty"),
    "csv without rows": (_csv("a,b[0],b[1]\n"), "no rows"),
    "csv without names": (_csv("1,2,3\n4,5,6\n"), "must name the columns"),
    "csv ragged": (_csv("a,b[0],b[1]\n1,2,3\n4,5\n"), "ragged at line 3"),
    "csv with words": (_csv("a,b[0],b[1]\n1,2,3\n4,five,6\n"), r"'b\[0\]' is not numeric: row 1 .* holds 'five'"),
    "csv with a gap": (_csv("a,b[0],b[1]\n1,2,3\n4,,6\n"), "NaN or empty values in row 1 .* column b"),
    "csv with nan": (_csv("a,b[0],b[1]\nnan,2,3\n4,5,6\n"), "row 0 .* column a"),
    "csv with infinity": (_csv("a,b[0],b[1]\n1,2,3\n4,5,inf\n"), "infinite values in row 1"),
    "csv with an unknown column": (
        _csv("a,b[0],b[2]\n1,2,3\n"),
        r"'b\[2\]' matches no site.*did you mean",
    ),
    "csv without a column": (_csv("a,b[0]\n1,2\n"), r"column 'b\[1\]' is missing"),
    "csv with a column twice": (_csv("a,a,b[0],b[1]\n1,2,3,4\n"), "'a' comes twice"),
    "csv that is not text": (_csv(b"\xff\xfe\x00\x01\x02"), "not a .csv file"),
    "parquet that is none": (_raw("bad.parquet", b"hello"), "not a readable .parquet"),
    "parquet with words": (_parquet(**{"a": ["x"], "b[0]": [1], "b[1]": [1]}), "'a' is not numeric"),
    "parquet with nulls": (_parquet(**{"a": [1, None], "b[0]": [1, 2], "b[1]": [1, 2]}), "row 1 .* column a"),
    "npz that is none": (_raw("bad.npz", b"hello"), "is not a .npz file"),
    "npz that is cut short": (_truncated, "bad.npz is (not a .npz file|damaged)"),
    "npz that is pickled": (_npz(a=np.array([1, "x", None], dtype=object), b=np.ones((3, 2))), "never loaded"),
    "npz with words": (_npz(a=np.array(["x", "y"]), b=np.ones((2, 2))), "'a' is not numeric"),
    "npz with text inside": (_strange_entry, "not numeric"),
    "npz with complex numbers": (_npz(a=np.ones(2, dtype=complex), b=np.ones((2, 2))), "not numeric"),
    "npz with an unknown key": (
        _npz(aa=np.ones(2), b=np.ones((2, 2))),
        "'aa' matches no site of the program; did you mean 'a'",
    ),
    "npz without a key": (_npz(a=np.ones(2)), "site 'b' is missing"),
    "npz of uneven rows": (_npz(a=np.ones(2), b=np.ones((3, 2))), "ragged: 'a' has 2 and 'b' has 3 rows"),
    "npz of one number": (_npz(a=np.ones(()), b=np.ones((3, 2))), "is one number"),
    "npz of a wrong shape": (_npz(a=np.ones(2), b=np.ones((2, 3))), r"site 'b' has shape \[3\]"),
    "npz of a wrong width": (_npz(x=np.ones((2, 4))), "4 columns; the program needs 3"),
    "npz without rows": (_npz(a=np.ones(0), b=np.ones((0, 2))), "no rows"),
    "npz with nan": (_npz(a=np.array([1, np.nan]), b=np.ones((2, 2))), "row 1 .* column a"),
    "npy that is none": (_raw("bad.npy", b"hello world"), "is not a .npy file"),
    "npy that is cut short": (_raw("bad.npy", b"\x93NUMPY\x01\x00"), "damaged"),
    "npy that is pickled": (_npy(np.array([{}, 1], dtype=object)), "never loaded"),
    "npy of a wrong width": (_npy(np.ones((2, 2))), "2 columns; the program needs 3"),
    "npy of three dimensions": (_npy(np.ones((2, 3, 1))), r"needs \[rows, 3\]"),
    "npy of one number": (_npy(1.0), r"shape \[\]"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    make, message = BAD[name]
    path = make(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        read_table(path, {"a": (), "b": (2,)})
    assert "\n" not in str(caught.value)
    assert str(path.name) in str(caught.value)


def test_one_unknown_among_many_columns_is_answered_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("pixel[0],pixle[1]\n1,2\n")
    with pytest.raises(UserError, match=r"'pixle\[1\]' matches no site of the program; did you mean 'pixel\[1\]'"):
        read_table(tmp_path / "t.csv", {"pixel": (2,)})


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_matrix_is_all_the_numbers(tmp_path: Path, ending: str) -> None:
    write_table(tmp_path / f"t{ending}", {"u": torch.ones(3), "v": torch.zeros(3, 2)})
    assert read_matrix(tmp_path / f"t{ending}").tolist() == [[1, 0, 0]] * 3


def test_a_matrix_must_be_finite(tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", np.array([[1.0, np.inf]]))
    with pytest.raises(UserError, match=r"infinite values in row 0 .* column x\[1\]"):
        read_matrix(tmp_path / "t.npy")


def test_bad_targets_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ending must be one of"):
        check_table_target(tmp_path / "t.txt")
    with pytest.raises(UserError, match="does not exist"):
        check_table_target(tmp_path / "no" / "t.csv")
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_table_target(tmp_path / "d.csv")
    write_table(tmp_path / "t.csv", {"a": torch.ones(1)})
    with pytest.raises(UserError, match="exists already"):
        write_table(tmp_path / "t.csv", {"a": torch.zeros(1)}, overwrite=False)
    assert read_table(tmp_path / "t.csv", {"a": ()})["a"].item() == 1


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", {"a": torch.ones(1)})
    with pytest.raises(Exception, match="length"):
        write_table(tmp_path / "t.csv", {"a": torch.ones(1), "b": torch.ones(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"]
    assert read_table(tmp_path / "t.csv", {"a": ()})["a"].item() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x;y\n1;2\n", "separated by semicolons"),
        ("x;y\n1,5;2,5\n", "separated by semicolons"),
        ("x\ty\n1\t2\n", "separated by tabs"),
        (",x,y\n0,1,2\n", "index=False"),
    ],
)
def test_tables_of_other_programs_get_a_hint(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(UserError, match=message):
        read_table(tmp_path / "a.csv", {"x": (), "y": ()})
