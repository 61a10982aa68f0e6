"""What the pair-loss trainers do with their data before and after TRL prepares it.

Before: number the rows, refuse missing columns and empty or identical answers. After: count what truncation cut, and
refuse pairs that it left without a difference; TRL itself shortens in silence. While training: name the row whose
margin is not finite.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate.logging import get_logger
from datasets import Dataset, IterableDataset
from transformers import Trainer, TrainingArguments

from burnish.align.losses import MarginError
from burnish.align.trainer_seam import AnyDataset, Collator, Example, PairArguments, PairBatch, Processing
from burnish.core.errors import DataError, SettingsError
from burnish.data.preferences import RIGHT, fault_of

logger = get_logger(__name__)

ROW = "pair_row"
"""Column that carries a pair's row number through TRL's data preparation, so that messages can name it. Data may bring
its own numbers in it, such as the lines of a file."""

SOFT_ADVICE = "use dpo, reward, or their aps and r3m forms, or remove that column, or the votes it is made from"

CARRIED = (ROW, RIGHT)
"""Columns that TRL's preparation lets through, and its collators leave behind."""


@dataclass
class DataReport:
    """What the checks and truncation did to a data set.

    Attributes:
        rows, kept: how many pairs it had, and has.
        unit: what a row is.
        shortened: how many truncation cut.
        dropped: {reason: count}.
    """

    rows: int
    kept: int
    shortened: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    unit: str = "pairs"

    def __str__(self) -> str:
        left_out = [f"{count} left out ({reason})" for reason, count in self.dropped.items()]
        return ", ".join([f"{self.kept} of {self.rows} {self.unit} kept", f"{self.shortened} shortened", *left_out])


class PairChecks(Trainer):
    """What both trainers do with their data: refuse or drop pairs without a preference, and count truncation.

    Mixed in before a trainer of TRL, whose methods are those that `super()` finds.

    Attributes:
        data_reports: of each data set, by its name.
    """

    data_reports: dict[str, DataReport]
    reads_soft_labels = True
    """Whether the loss is a sum over both orders of a pair's answers."""
    _rows_of_batch: list[int] | None = None
    _right_of_batch: torch.Tensor | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.data_reports = {}  # filled by the preparation of the data, which TRL's constructor does
        super().__init__(*args, **kwargs)
        self.data_collator = WithRows(self.data_collator)  # row numbers travel in the batch: it is collated ahead

    def _prepare_dataset(
        self, dataset: AnyDataset, processing_class: Processing, args: TrainingArguments, dataset_name: str
    ) -> AnyDataset:
        pair_args = cast("PairArguments", args)
        checked = self._number_and_check(dataset, pair_args, dataset_name)
        checked = without_second_bos(checked, processing_class)
        prepared = super()._prepare_dataset(checked, processing_class, args, dataset_name)  # type: ignore[misc]
        return self._check_truncated(prepared, pair_args, dataset_name)

    def _number_and_check(self, dataset: AnyDataset, args: PairArguments, name: str) -> AnyDataset:
        """Raw rows: numbers them unless they are, refuses missing columns and empty or identical answers."""
        if isinstance(dataset, IterableDataset):
            kept = {"name": name, "drops": args.on_bad_pair == "drop"}
            return dataset.filter(_is_usable, with_indices=True, fn_kwargs=kept)
        if "prompt" in dataset.column_names and all(prompt is None for prompt in dataset["prompt"]):
            dataset = dataset.remove_columns("prompt")  # a column of nulls says as much as none
        numbered = dataset if ROW in dataset.column_names else dataset.add_column(ROW, list(range(len(dataset))))
        report = self.data_reports[name] = DataReport(len(dataset), len(dataset))
        if RIGHT in dataset.column_names and not self.reads_soft_labels:
            raise SettingsError(f"does not read {RIGHT}, which {name} data has", where="the loss", fix=SOFT_ADVICE)
        if "chosen_ids" in dataset.column_names:
            return numbered
        faults: list[str | None] = []
        for example in _examples(numbered):
            fault = _fault(example)
            if fault is not None and (args.on_bad_pair == "refuse" or fault.startswith("has no column")):
                raise DataError(
                    fault, where=f"{name} data, row {example[ROW]}", fix="remove that row, or set on_bad_pair to 'drop'"
                )
            faults.append(fault)
        return _without(numbered, faults, report)

    def _check_truncated(self, dataset: AnyDataset, args: PairArguments, name: str) -> AnyDataset:
        """Token ids: counts what truncation cuts, and refuses or drops pairs that it made equal or empty."""
        if isinstance(dataset, IterableDataset) or ROW not in dataset.column_names:
            return dataset
        report = self.data_reports[name]
        if too_long := report.kept - len(dataset):
            report.dropped["longer than max_length"] += too_long
        faults: list[str | None] = []
        for example in _examples(dataset):
            chosen, rejected, cut = self._kept_tokens(example, args)
            report.shortened += cut
            fault = None
            if chosen == rejected:
                fault = "the chosen and the rejected answer are identical after truncation"
            elif not chosen or not rejected:
                fault = "an answer is empty after truncation"
            if fault is not None and args.on_bad_pair == "refuse":
                raise DataError(
                    f"{fault} to {args.max_length} tokens",
                    where=f"{name} data, row {example[ROW]}",
                    fix="raise max_length, or set on_bad_pair to 'drop'",
                )
            faults.append(fault)
        usable = _without(dataset, faults, report)
        if not report.kept:
            raise DataError("no pair is left after truncation", where=f"{name} data", fix="raise max_length")
        if report.shortened or report.dropped:
            logger.info("%s data: %s", name, report)
        return usable

    def _kept_tokens(self, example: Example, args: PairArguments) -> tuple[list[int], list[int], bool]:
        """Token ids of both answers as the model will see them, and whether truncation cut them."""
        raise NotImplementedError

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        columns: list[str] | None = self._signature_columns
        if columns is not None:
            columns += [name for name in CARRIED if name not in columns]

    def _prepare_inputs(self, inputs: PairBatch) -> PairBatch:
        rows = inputs.pop(ROW, None)
        self._rows_of_batch = None if rows is None else rows.tolist()
        right = inputs.pop(RIGHT, None)
        self._right_of_batch = None if right is None else right.to(self.args.device)
        return super()._prepare_inputs(inputs)

    @contextmanager
    def _naming_rows(self) -> Iterator[None]:
        """A margin that is not finite is reported with its row in the data instead of its place in the batch."""
        try:
            yield
        except MarginError as error:
            if self._rows_of_batch is None or self.model is None:
                raise
            data = "training" if self.model.training else "evaluation"
            where = f"{data} data, row {self._rows_of_batch[error.pair]}"
            raise MarginError(error.pair, error.value, where=where) from None


class WithRows:
    """A collator whose batches also carry the row numbers and soft labels of their pairs, where the data has them."""

    def __init__(self, collate: Collator) -> None:
        self.collate = collate

    def __call__(self, examples: list[Example]) -> PairBatch:
        batch = self.collate(examples)
        for name in CARRIED:
            if all(name in example for example in examples):
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch


def _examples(dataset: Dataset) -> Iterator[Example]:
    for example in dataset:
        assert isinstance(example, dict), "rows of a data set that is not formatted are dictionaries"
        yield example


def _without(dataset: Dataset, faults: Sequence[str | None], report: DataReport) -> Dataset:
    """The rows that have no fault; the others are counted in the report."""
    usable = [index for index, fault in enumerate(faults) if fault is None]
    report.kept = len(usable)
    report.dropped.update(fault for fault in faults if fault is not None)
    return dataset.select(usable) if len(usable) < len(dataset) else dataset


def _fault(example: Example) -> str | None:
    """Why a row is no pair to train on; TRL takes a prompt for every row where there is a column of them."""
    if "prompt" in example and example["prompt"] is None:
        return "the prompt is null in data with a column of prompts"
    if example.get(RIGHT, 1.0) is None:
        return f"{RIGHT} is null in data with a column of soft labels"
    return fault_of(example)


def _is_usable(example: Example, row: int, name: str, drops: bool) -> bool:
    """Of a row of a stream; a bad one is an error unless bad ones are dropped."""
    fault = _fault(example)
    if fault is None:
        return True
    if drops and not fault.startswith("has no column"):
        return False
    raise DataError(fault, where=f"{name} data, row {row}", fix="remove that row, or set on_bad_pair to 'drop'")


def without_second_bos(dataset: AnyDataset, processing_class: Processing) -> AnyDataset:
    """Texts that begin with the token that the tokenizer puts before every text lose it: it would stand there twice.

    Only what opens the sequence is looked at: the prompt, or answers that hold their prompt.
    """
    tokenizer: Any = getattr(processing_class, "tokenizer", processing_class)  # of a processor, its tokenizer
    mark = tokenizer.bos_token
    first = next(iter(dataset), {})
    if not mark or not isinstance(first.get("chosen", first.get("completion")), str):
        return dataset
    if tokenizer("a")["input_ids"][:1] != [tokenizer.bos_token_id]:
        return dataset
    columns = ("prompt",) if first.get("prompt") is not None else ("chosen", "rejected")
    if not isinstance(dataset, IterableDataset) and not any(
        example[column].startswith(mark) for example in _examples(dataset) for column in columns
    ):
        return dataset
    return dataset.map(lambda example: {column: example[column].removeprefix(mark) for column in columns})
