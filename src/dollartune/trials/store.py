"""Where results lie: one folder per trial, one atomic record in each.

studies/NAME/
  study.yaml             what was asked
  plan.json              the trials that this means, in order
  accounts.json          the methods among which shared time is divided
  ledger.jsonl           every second, booked
  searches/<hash>.json   what a search or a race has asked, been told and decided
  trials/<hash>/record.json  outcomes.npz  predictions.jsonl.gz  adapter/  checkpoint/
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dollartune.errors import UserError
from dollartune.evaluate.row_outcomes import OUTCOMES, RowOutcomes, packed, row_outcomes, unpacked
from dollartune.files import finite, write_atomically
from dollartune.trials.record import TrialRecord, read_record

if TYPE_CHECKING:
    from dollartune.config import StudySettings
    from dollartune.evaluate.evaluation import StoredPrediction


class Store:
    """The folder of one study."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def create(self, study: str, trials: Sequence[str]) -> None:
        """Makes the folder and writes down what was asked, and which trials that means."""
        (self.root / "trials").mkdir(parents=True, exist_ok=True)
        write_atomically(self.root / "study.yaml", study.encode())
        # After the folder and study.yaml, so that whoever sees a plan finds what it was made from.
        self.plan(trials)

    def need_other_file(self, study: Path) -> None:
        """Refuses a study file that lies where a run writes down what was asked: its comments would be lost.

        Raises:
            UserError: it does.
        """
        if study.resolve() == (self.root / "study.yaml").resolve() and not (self.root / "trials").is_dir():
            raise UserError(
                f"{study} would be written over: {self.root} is the folder of this study too, and its own study.yaml goes there.",
                hint="Give the file another name, or the folder: --output FOLDER.",
            )

    def plan(self, trials: Sequence[str]) -> None:
        """Writes down which trials the study consists of: those that results and reports are about.

        A trial that goes on where one of them ended stays in it: no study file lists those.
        """
        planned, before = dict.fromkeys(trials), self.planned()
        # In the order in which they were made, so that what extends an extension finds it here.
        for identifier in before or ():
            if identifier not in planned and self.has(identifier) and self.read(identifier).trial.extends in planned:
                planned[identifier] = None
        if list(planned) != before:  # it is said before each cohort, and seldom another
            write_atomically(self.root / "plan.json", json.dumps(list(planned)).encode())

    def planned(self) -> list[str] | None:
        """The trials of the study as it was last run; records of an earlier version of it may lie beside theirs."""
        path = self.root / "plan.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def write_accounts(self, methods: Sequence[str]) -> None:
        """Writes down among which methods a run divides what all share, for those who read its ledger."""
        write_atomically(self.root / "accounts.json", json.dumps(list(methods)).encode())

    def accounts(self) -> list[str] | None:
        """The same; None where the study was last run by 0.1."""
        path = self.root / "accounts.json"
        return json.loads(path.read_text()) if path.is_file() else None

    def as_begun(self, settings: StudySettings) -> StudySettings:
        """The settings, with what a folder of before 0.2 took for granted: its seeds shared one draw of the training rows, and a
        budget alone searched nothing. Its records are found only as long as that stays. What the study states is not
        overruled."""
        path = self.root / "study.yaml"
        try:
            before = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):  # not begun, or written by hand
            return settings
        if not isinstance(before, dict):
            return settings
        kept: dict[str, Any] = {} if "draws" in before else {"draws": "once"}
        # A study that got its budget only now has its records at fixed settings too, and goes on to search.
        if before.get("budget") and not before.get("search"):
            kept["search"] = None
        return settings.model_copy(update={k: v for k, v in kept.items() if k not in settings.model_fields_set})

    def clear(self) -> None:
        """Deletes all results of the study (`--fresh`); anything else in the folder stays."""
        for name in ("trials", "report", "searches"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        # version 0.1 also left an index.sqlite and a study.previous.yaml
        for pattern in ("ledger.*", "index.sqlite*", "study.yaml", "study.previous.yaml", "plan.json", "accounts.json"):
            for path in self.root.glob(pattern):
                path.unlink(missing_ok=True)

    def folder(self, trial: str) -> Path:
        """A trial's folder."""
        return self.root / "trials" / trial

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.jsonl"

    # Records

    def has(self, trial: str) -> bool:
        """Whether a trial has its record: it is done, or it failed."""
        return (self.folder(trial) / "record.json").is_file()

    def write(self, trial: str, record: TrialRecord, predictions: Iterable[Any] = ()) -> None:
        """Stores a finished trial. Predictions are written first: a record is there only when all of it is."""
        rows = [finite(asdict(row)) for row in predictions]
        if rows:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            # mtime=0: the same predictions are the same bytes, whenever they were written.
            write_atomically(self.folder(trial) / "predictions.jsonl.gz", gzip.compress(lines.encode(), mtime=0))
            write_atomically(self.folder(trial) / OUTCOMES, packed(row_outcomes(rows, record.metric)))
        content = json.dumps(finite(record.to_json()), indent=1, ensure_ascii=False, allow_nan=False)
        write_atomically(self.folder(trial) / "record.json", content.encode())

    def forget(self, trial: str) -> None:
        """Takes a record away, so that the trial is run again."""
        # The record alone decides that a trial is done; all else in its folder is written anew.
        (self.folder(trial) / "record.json").unlink(missing_ok=True)

    def remove(self, trial: str) -> None:
        """Deletes a trial with all that it left."""
        self.forget(trial)  # first: a kill in between leaves a trial that was not run, and not half of one that was
        shutil.rmtree(self.folder(trial))

    def read(self, trial: str) -> TrialRecord:
        """One record."""
        path = self.folder(trial) / "record.json"
        try:
            # Bytes, which the parser of JSON takes as they are.
            return read_record(path.read_bytes(), str(path))
        except FileNotFoundError:
            raise UserError(f"there is no trial {trial!r} in {self.root}.", hint="dollartune results STUDY") from None

    def records(self) -> Iterator[TrialRecord]:
        """All records, in a stable order."""
        # Sorted: the order of a directory differs between file systems, and ties in tables are broken by order.
        for path in sorted((self.root / "trials").glob("*/record.json")):
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # another process removes the trial just now
                continue
            yield read_record(content, str(path))

    def with_adapter(self) -> Iterator[TrialRecord]:
        """Records of the trials whose adapter is still there."""
        for folder in sorted((self.root / "trials").glob("*/adapter")):
            if self.has(folder.parent.name):
                yield self.read(folder.parent.name)

    def outcomes(self, record: TrialRecord) -> RowOutcomes | None:
        """What a trial did on each test row, in test order; None where predictions are not stored.

        Version 0.1 wrote no columns: they are made of its predictions once, and kept beside them.
        """
        path = self.folder(record.id) / OUTCOMES
        if path.is_file():
            return unpacked(path.read_bytes())
        rows = self.predictions(record.id)
        if not rows:
            return None
        made = row_outcomes(rows, record.metric)
        with suppress(OSError):  # a folder that cannot be written costs time only
            write_atomically(path, packed(made))
        return made

    def predictions(self, trial: str) -> list[StoredPrediction]:
        """Predictions of one trial, in test order; empty where there are none."""
        path = self.folder(trial) / "predictions.jsonl.gz"
        if not path.is_file():
            return []
        with gzip.open(path, "rt", encoding="utf8") as file:
            return [json.loads(line) for line in file]

    # What searches have decided

    def write_state(self, name: str, values: Mapping[str, Any]) -> None:
        """Stores the state of a search or a race."""
        write_atomically(self.root / "searches" / f"{name}.json", json.dumps(dict(values)).encode())

    def read_state(self, name: str) -> dict[str, Any] | None:
        """The state of that name; None if there is none."""
        path = self.root / "searches" / f"{name}.json"
        try:
            state: dict[str, Any] | None = json.loads(path.read_text())
        except (FileNotFoundError, ValueError):  # a state that cannot be read is none: records are never lost by that
            return None
        return state


def find_study(path: str | Path) -> Store:
    """The store of a study, given its folder, its YAML file, or a folder of studies with just one in it.

    Raises:
        UserError: there is none.
    """
    root = Path(path)
    if root.is_file():
        if root.name == "study.yaml" and (root.parent / "trials").is_dir():
            return Store(root.parent)
        from dollartune.study_file import load_study

        settings = load_study(root)
        root = Path(settings.output) / (settings.name or root.stem)
    if (root / "trials").is_dir():
        return Store(root)
    # One level down and no further: a study's trials have folders of their own.
    inside = [p.parent for p in root.glob("*/trials")] if root.is_dir() else []
    if len(inside) == 1:
        return Store(inside[0])
    if inside:
        raise UserError(f"{root} holds several studies: {', '.join(sorted(p.name for p in inside))}. Name one.")
    raise UserError(f"there is no study in {str(root)!r}.", hint="dollartune run STUDY.yaml")
