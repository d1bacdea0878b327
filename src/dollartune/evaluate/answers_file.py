"""A file of predictions: json lines, or csv beside the input's columns; it belongs to one adapter and one input.

Beside `answers.jsonl` lies `answers.jsonl.source.json` with the hashes of both, so that a later call goes on with the same
work and refuses another.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from dollartune.errors import UserError
from dollartune.files import lock, write_atomically
from dollartune.tasks.csv_files import long_fields
from dollartune.tasks.values import as_text

if TYPE_CHECKING:
    from dollartune.evaluate.evaluation import Prediction

SOURCE_SUFFIX = ".source.json"
_NOT_WRITTEN = (".parquet", ".tsv", ".xlsx", ".xls", ".gz", ".zip", ".bz2", ".xz")
"""Endings by which other programs would read the file as something that it is not."""


def fingerprint_of_rows(rows: Sequence[Mapping[str, Any]]) -> str:
    """Hash of the rows of an input, in order, by their columns and values."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps({str(name): as_text(value) for name, value in row.items()}).encode() + b"\n")
    return digest.hexdigest()[:32]


class AnswersFile:
    """Predictions of one adapter for one input.

    Args:
        path: where they are written: csv if the name ends in .csv, else json lines; None for json lines on standard output.
        columns: the input's columns, which csv repeats.
        labels: whose probabilities csv gives a column each; none for generation.
        problems: whether some rows cannot be asked: csv then has a column for the reason.
    """

    def __init__(self, path: Path | None, columns: Sequence[str], labels: Sequence[str], problems: bool) -> None:
        self.path, self.columns = path, list(columns)
        self.as_csv = path is not None and path.suffix.lower() == ".csv"
        added = ["prediction", *(f"probability of {label}" for label in labels), *(["problem"] if problems else [])]
        # The input may have a column `prediction`, of an earlier call: its own stays as it is.
        self.header = [*self.columns, *(f"{name} (new)" if name in self.columns else name for name in added)]
        self.labels, self.problems = list(labels), problems
        self._stream: IO[str] | None = None

    def begin(self, source: Mapping[str, str], restart: bool) -> int:
        """Makes the file ready and says how many rows it has already.

        Args:
            source: `adapter` and `rows`, hashes of what is asked and of the input; further keys are for people.
            restart: throw away what is there.

        Raises:
            UserError: it holds answers of another adapter or to other rows, another process is writing it, or it cannot be
                written.
        """
        if self.path is None:
            return 0
        if self.path.is_dir() or not self.path.parent.is_dir():
            what = (
                "is a folder" if self.path.is_dir() else f"cannot be made: there is no folder {str(self.path.parent)!r}"
            )
            raise UserError(
                f"--out {str(self.path)!r} {what}.", "Name a file in an existing folder, such as answers.jsonl."
            )
        if self.path.suffix.lower() in _NOT_WRITTEN:
            raise UserError(
                f"--out {str(self.path)!r}: predictions are written as json lines or csv, not as {self.path.suffix}.",
                "Name a file that ends in .jsonl or .csv.",
            )
        self._stream = open(self.path, "a", encoding="utf8", newline="")  # noqa: SIM115 - `open` hands it out
        try:
            # Before anything is read or cut: two at once would answer the same rows, and mix their lines.
            if not lock(self._stream):
                raise UserError(f"another process is writing {self.path}.", "Wait for it, or choose another --out.")
            return self._made_ready(self.path, self._stream, source, restart)
        except BaseException:
            self._stream.close()
            raise

    def _made_ready(self, path: Path, stream: IO[str], source: Mapping[str, str], restart: bool) -> int:
        if restart:
            stream.truncate(0)
        beside = path.with_name(path.name + SOURCE_SUFFIX)
        if there := path.stat().st_size:
            self._refuse_others(beside, source)
        # before the first answer: answers with nothing beside them would be refused
        write_atomically(beside, json.dumps(dict(source), indent=1).encode())
        done = self._whole_records(stream) if there else 0
        if self.as_csv and not done:
            stream.truncate(0)
            stream.write(_csv_line(self.header))
            stream.flush()
        return done

    def _refuse_others(self, beside: Path, source: Mapping[str, str]) -> None:
        assert self.path is not None
        way_out = "Choose another --out, or add --restart to replace it."
        try:
            before = json.loads(beside.read_text(encoding="utf8"))
        except (OSError, ValueError):
            before = None
        if not isinstance(before, dict):
            raise UserError(f"{self.path} exists, and nothing beside it says whose answers it holds.", way_out)
        for key, what in (("adapter", "another adapter"), ("rows", "other rows")):
            if before.get(key) != source[key]:
                name = before.get(f"{key} from")
                raise UserError(f"{self.path} holds answers for {what}" + (f" ({name})." if name else "."), way_out)

    def _whole_records(self, stream: IO[str]) -> int:
        """Number of whole records; a torn last one is cut off."""
        assert self.path is not None
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        count = whole.count(b"\n")
        if self.as_csv:
            records, ends = 0, 0
            for end in _ends_of_records(whole, len(self.header)):
                records, ends = records + 1, end
            count, whole = max(0, records - 1), whole[:ends]
        if len(whole) != len(content):
            stream.truncate(len(whole))
        return count

    def lines(self, number: int, row: Mapping[str, Any], prediction: Prediction | None, problem: str | None) -> str:
        """One record, with its line end.

        Args:
            number: of the row, from 0.
            prediction: None where the row could not be asked.
            problem: why it could not.
        """
        predicted = None if prediction is None else prediction.predicted
        probabilities = None if prediction is None else prediction.probabilities
        if self.as_csv:
            scores = [] if not self.labels else [_number((probabilities or {}).get(label)) for label in self.labels]
            given = [as_text(row.get(name)) for name in self.columns]
            return _csv_line([*given, predicted or "", *scores, *([problem or ""] if self.problems else [])])
        line: dict[str, object] = {"row": number, "prediction": predicted}
        if probabilities is not None:
            line["probabilities"] = probabilities
        if problem is not None:
            line["problem"] = problem
        return json.dumps(line, ensure_ascii=False) + "\n"

    def open(self) -> Any:
        """The stream to write records to, as a context manager."""
        return _StandardOutput() if self._stream is None else self._stream


def _ends_of_records(content: bytes, columns: int) -> Iterator[int]:
    """Where each whole csv record ends, in bytes; the first one that is torn, inside a quoted value that goes over lines, is the
    last."""
    lines = content.splitlines(keepends=True)
    reader = csv.reader((line.decode("utf8", errors="replace") for line in lines), strict=True)
    ends = [0, *accumulate(map(len, lines))]
    with long_fields(), suppress(csv.Error):  # the end came inside quotes
        for record in reader:
            if len(record) != columns:
                return
            yield ends[reader.line_num]


def _csv_line(values: Sequence[str]) -> str:
    stream = io.StringIO(newline="")
    # Values are put in quotes for what ends a line here, which for readers is either of the two.
    csv.writer(stream, lineterminator="\r\n").writerow(values)
    return stream.getvalue().removesuffix("\r\n") + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"  # six digits: scores are no surer than that


class _StandardOutput:
    """Standard output as a context manager that does not close it."""

    def __enter__(self) -> Any:
        return sys.stdout

    def __exit__(self, *error: object) -> None:
        sys.stdout.flush()
