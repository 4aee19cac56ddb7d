"""From ``data.path`` to rows: which files it names, in which order, and what is in them.

A path is a file, a glob or a folder as the hub has them (``data/train-00000-of-00002.parquet``); a
list of those is one data set after the other. Rows are read here rather than by ``datasets`` so
that an error can name file and row.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import ConfigError, DataError
from .config import DataSource

Row = dict[str, Any]
KINDS = (".parquet", ".jsonl", ".json", ".csv", ".jsonl.gz", ".json.gz", ".csv.gz")
_SHARD = re.compile(r"(?P<stem>.+?)-(?P<number>[0-9]+)-of-(?P<of>[0-9]+)")
_ABOUT = (
    "dataset_info",
    "dataset_infos",
    "dataset_dict",
    "state",
)  # JSON files that describe a data set
_SHOWN = 5  # names in a message


class Place(NamedTuple):
    """Where a row stands. file: its name for messages. number: from 1, in the file."""

    file: str
    number: int


class Found(NamedTuple):
    """A row as it is in the file. source: of rows that name none. arrow: null may mean that a field
    is absent."""

    place: Place
    source: str
    row: Row
    arrow: bool


@dataclass(frozen=True, slots=True)
class DataFile:
    """name: for messages. source: the data set that it is part of."""

    path: Path
    name: str
    source: str


# ---- which files


def data_files(source: DataSource, setting: str) -> list[DataFile]:
    """The files that ``source.path`` names, in the order of the list, those of a glob or folder
    sorted by name; none without a path.

    Raises ConfigError, one line that names the setting, where there is none, or one that is named
    twice.
    """
    found: dict[Path, str] = {}
    for entry in source.paths:
        for file, name in _entry(entry, source, setting):
            path = Path(os.path.abspath(file))
            if path in found:
                raise ConfigError(f"{setting}.path: names {path} twice; a file may stand once")
            if not _kind(path):
                raise ConfigError(f"{setting}.path = {str(path)!r}: must end in {', '.join(KINDS)}")
            found[path] = name
    if not found:
        return []
    common = Path(os.path.commonpath([path.parent for path in found]))
    return [DataFile(path, str(path.relative_to(common)), name) for path, name in found.items()]


def _entry(entry: str, source: DataSource, setting: str) -> list[tuple[Path, str]]:
    """The files of one path, and the name of the data set that they are."""
    path = Path(entry)
    if path.is_file():
        return [(path, _stem(path))]
    if path.is_dir():
        files = _of_folder(path, source, f"{setting}.path = {entry!r}", setting)
        return [(file, _folder_name(path)) for file in files]
    # its own name may look like a pattern
    there = next(parent for parent in path.parents if parent.is_dir())
    pattern = str(path.relative_to(there))
    if not glob.has_magic(pattern):
        raise ConfigError(f"{setting}.path = {entry!r}: no such file")
    found = (there / name for name in glob.glob(pattern, root_dir=there, recursive=True))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise ConfigError(f"{setting}.path = {entry!r}: no file matches")
    return [(file, _folder_name(file.parent)) for file in files]


def _folder_name(folder: Path) -> str:
    folder = folder.resolve()
    return folder.parent.name if folder.name == "data" else folder.name


def _of_folder(folder: Path, source: DataSource, where: str, setting: str) -> list[Path]:
    """The files of one split: ``train-*``, ``data/train-*`` or ``train/*``; all files where none
    names a split."""
    base = folder / source.subset if source.subset else folder
    if not base.is_dir():
        raise ConfigError(
            f"{where}: has no folder {source.subset!r} (setting {setting}.subset); {_folders(folder)}"
        )
    tops = [_files_in(base), _files_in(base / "data")]
    of_split = [
        [file for file in files if source.split in (_split_of(file), _stem(file))] for files in tops
    ]
    of_split += [_files_in(base / source.split), _files_in(base / "data" / source.split)]
    groups = [files for files in of_split if files]
    if (
        not groups
        and source.split == "train"
        and not any(_split_of(file) for files in tops for file in files)
    ):
        groups = [files for files in tops if files]
    if not groups:
        raise ConfigError(
            f"{where}: no file of split {source.split!r}; {_what_is_there(base, tops, setting)}"
        )
    kinds = {(file.parent, _kind(file)) for files in groups for file in files}
    if len(kinds) > 1:
        shown = ", ".join(
            str(file.relative_to(folder)) for files in groups for file in files[:_SHOWN]
        )
        raise ConfigError(
            f"{where}: split {source.split!r} is there more than once ({shown}): name the files of one"
        )
    _check_shards(groups[0], where)
    return groups[0]


def _files_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and _kind(file)]
    return [file for file in files if file.name[0] not in "._" and _stem(file) not in _ABOUT]


def _split_of(file: Path) -> str | None:
    """The split that a file's name names: train of train.jsonl, math_train_1.csv and
    train-00000-of-00002.parquet."""
    stem = _stem(file)
    match = re.search(r"(?:^|[-._ ])(train|test|validation|valid|val|dev|eval)(?![A-Za-z])", stem)
    return match[1] if match else stem if stem != _full_stem(file) else None


def _what_is_there(base: Path, tops: Sequence[Sequence[Path]], setting: str) -> str:
    splits = sorted({split for files in tops for file in files if (split := _split_of(file))})
    if splits:
        return f"there are {', '.join(splits)} (setting {setting}.split)"
    return f"{_folders(base)} (setting {setting}.subset); files must end in {', '.join(KINDS)}"


def _folders(folder: Path) -> str:
    names = sorted(
        path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")
    )
    return f"folders there: {', '.join(names[:_SHOWN]) or 'none'}"


def _check_shards(files: Sequence[Path], where: str) -> None:
    """Refuses a download that lacks one of its parts."""
    shards = [match for file in files if (match := _SHARD.match(_full_stem(file)))]
    for stem, of in {(match["stem"], match["of"]) for match in shards}:
        there = {
            int(match["number"]) for match in shards if (match["stem"], match["of"]) == (stem, of)
        }
        missing = sorted(set(range(int(of))) - there)
        if missing:
            raise ConfigError(
                f"{where}: {len(missing)} of the {int(of)} files {stem}-*-of-{of} are missing (first: number "
                f"{missing[0]}): download them, or name the files to read"
            )


def _kind(path: Path) -> str | None:
    name = path.name.lower()
    return next((kind for kind in KINDS if name.endswith(kind) and len(name) > len(kind)), None)


def _full_stem(path: Path) -> str:
    return path.name[: -len(_kind(path) or "")] if _kind(path) else path.stem


def _stem(path: Path) -> str:
    """A file's name without ending and shard."""
    match = _SHARD.fullmatch(_full_stem(path))
    return match["stem"] if match else _full_stem(path)


# ---- what is in them


def read_files(files: Sequence[DataFile]) -> tuple[list[str], Iterator[Found]]:
    """The columns, which all files share, and the rows of all. Raises DataError, one line that
    names file and line."""
    opened = [(file, *_open(file)) for file in files]
    columns = opened[0][1]
    for file, others, _ in opened:
        if len(files) > 1 and not others:
            raise DataError(f"{file.name}: holds nothing, not one row: leave it out")
        if set(others) != set(columns):
            lacks = _named("without", set(columns) - set(others))
            adds = _named("with", set(others) - set(columns))
            raise DataError(
                f"{file.name}: other columns than {files[0].name} ({', '.join(filter(None, (lacks, adds)))}): files "
                "that are read together must have the same"
            )
    return columns, (
        Found(Place(file.name, number), file.source, row, file.path.suffix.lower() == ".parquet")
        for file, _, rows in opened
        for number, row in enumerate(rows, start=1)
    )


def _named(word: str, columns: set[str]) -> str:
    names = [repr(name) for name in sorted(columns)]
    return (
        f"{word} {', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''}"
        if names
        else ""
    )


def _open(file: DataFile) -> tuple[list[str], Iterator[Row]]:
    kind = str(_kind(file.path)).removesuffix(".gz")
    if kind == ".parquet":
        return _read_parquet(file.path, file.name)
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".csv": _read_csv}
    return readers[kind](_text(file.path, file.name), file.name)


def _text(path: Path, where: str) -> str:
    try:
        data = path.read_bytes()
        # By content and not by name: some tools leave the ending when they unpack.
        return (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 text ({error.reason} at byte {error.start}): convert the file"
        ) from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{where}: not a whole gzip file ({error}): download or pack it again"
        ) from None
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror})") from None


def _read_parquet(path: Path, where: str) -> tuple[list[str], Iterator[Row]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        columns = list(pq.read_schema(path).names)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        with path.open("rb") as start:
            pointer = start.read(40).startswith(b"version https://git-lfs")
        why = "a Git LFS pointer: run git lfs pull" if pointer else str(error).splitlines()[0]
        raise DataError(f"{where}: not a parquet file ({why})") from None

    def rows() -> Iterator[Row]:
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches():
                    yield from arrow_rows(batch)
        except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
            raise DataError(
                f"{where}: damaged ({str(error).splitlines()[0]}): download it again"
            ) from None

    return columns, rows()


def arrow_rows(batch: Any) -> list[Row]:
    """A record batch as mappings; numbers of 16 and 32 bits as they were meant: 0.3, not
    0.30000001192092896."""
    import pyarrow as pa

    columns = [
        column.cast(pa.string()).cast(pa.float64())
        if column.type in (pa.float16(), pa.float32())
        else column
        for column in batch.columns
    ]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names).to_pylist()  # type: ignore[no-any-return]


def _read_jsonl(text: str, where: str) -> tuple[list[str], Iterator[Row]]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            rows.append(_json_object(line, f"{where} line {number}"))
    return union(rows), iter(rows)


def _json_object(line: str, where: str) -> Row:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg}, column {error.colno}): mend or delete the line"
        ) from None
    if not isinstance(row, dict):
        raise DataError(f"{where}: must be a JSON object, found {type(row).__name__}")
    return row


def _read_json(text: str, where: str) -> tuple[list[str], Iterator[Row]]:
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where} line {error.lineno}: not JSON ({error.msg}); one object a line is .jsonl"
        ) from None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DataError(f"{where}: must be a JSON list of objects; one object a line is .jsonl")
    return union(rows), iter(rows)


def _read_csv(text: str, where: str) -> tuple[list[str], Iterator[Row]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    # the module's own, 131,072, is shared by the whole process
    limit = csv.field_size_limit(max(len(text), 1))
    try:
        names = list(reader.fieldnames or [])
        rows = list(reader)
    except csv.Error as error:
        raise DataError(
            f"{where} line {reader.line_num}: not CSV ({error}): mend the line"
        ) from None
    finally:
        csv.field_size_limit(limit)
    for number, row in enumerate(rows, start=1):
        if None in row:
            raise DataError(
                f"{where} row {number}: more fields than the header names: quote fields that hold a comma"
            )
    return names, iter(rows)


def union(rows: Sequence[Row]) -> list[str]:
    """The names of all columns, in the order of their first appearance."""
    return list(dict.fromkeys(name for row in rows for name in row))
