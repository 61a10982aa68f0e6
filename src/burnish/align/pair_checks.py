"""What the pair-loss trainers do with their data before and after TRL prepares it.

Before: number the rows, refuse missing columns and empty or identical answers. After: count what truncation cut, and
refuse pairs that it left without a difference; TRL itself shortens in silence. While training: name the row whose
margin is not finite.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.logging import get_logger
from datasets import IterableDataset

from burnish.align.losses import MarginError
from burnish.align.pairs import fault_of
from burnish.core.errors import DataError

logger = get_logger(__name__)

ROW = "pair_row"
"""Column that carries a pair's row number through TRL's data preparation, so that messages can name it. Data may bring
its own numbers in it, such as the lines of a file."""


class PairChecks:
    """What both trainers do with their data: refuse or drop pairs without a preference, and count truncation.

    `truncation` holds, per data set, {rows, kept, shortened, dropped: {reason: count}}.
    """

    truncation: dict[str, dict[str, Any]]
    _rows_of_batch: list[int] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.data_collator = WithRows(self.data_collator)  # row numbers travel in the batch: it is collated ahead

    def _number_and_check(self, dataset: Any, args: Any, name: str) -> Any:
        """Raw rows: numbers them unless they are, refuses missing columns and empty or identical answers."""
        if not hasattr(self, "truncation"):
            self.truncation = {}
        if isinstance(dataset, IterableDataset):
            return dataset.map(_check_streamed(name), with_indices=True)
        numbered = dataset if ROW in dataset.column_names else dataset.add_column(ROW, list(range(len(dataset))))
        self.truncation[name] = {"rows": len(dataset), "kept": len(dataset), "shortened": 0, "dropped": {}}
        if "chosen_ids" in dataset.column_names:
            return numbered
        kept, dropped = [], {}
        for index, example in enumerate(numbered):
            fault = fault_of(example)
            if fault is None:
                kept.append(index)
                continue
            if args.on_bad_pair == "refuse" or fault.startswith("has no column"):
                raise DataError(
                    fault, where=f"{name} data, row {example[ROW]}", fix="remove that row, or set on_bad_pair to 'drop'"
                )
            dropped[fault] = dropped.get(fault, 0) + 1
        self.truncation[name] |= {"kept": len(kept), "dropped": dropped}
        return numbered.select(kept) if dropped else numbered

    def _check_truncated(self, dataset: Any, args: Any, name: str) -> Any:
        """Token ids: counts what truncation cuts, and refuses or drops pairs that it made equal or empty."""
        if isinstance(dataset, IterableDataset) or ROW not in dataset.column_names:
            return dataset
        report = self.truncation[name]
        report["dropped"] |= _positive({"longer than max_length": report["kept"] - len(dataset)})
        kept, shortened = [], 0
        for index, example in enumerate(dataset):
            chosen, rejected, cut = self._kept_tokens(example, args)
            shortened += cut
            fault = None
            if chosen == rejected:
                fault = "the chosen and the rejected answer are identical after truncation"
            elif not chosen or not rejected:
                fault = "an answer is empty after truncation"
            if fault is None:
                kept.append(index)
            elif args.on_bad_pair == "refuse":
                raise DataError(
                    f"{fault} to {args.max_length} tokens",
                    where=f"{name} data, row {example[ROW]}",
                    fix="raise max_length, or set on_bad_pair to 'drop'",
                )
            else:
                report["dropped"][fault] = report["dropped"].get(fault, 0) + 1
        report |= {"kept": len(kept), "shortened": shortened}
        if not kept:
            raise DataError("no pair is left after truncation", where=f"{name} data", fix="raise max_length")
        if shortened or report["dropped"]:
            logger.info("%s data: %s", name, truncation_sentence(report))
        return dataset.select(kept) if len(kept) < len(dataset) else dataset

    def _kept_tokens(self, example: dict[str, Any], args: Any) -> tuple[list[int], list[int], bool]:
        raise NotImplementedError

    def _set_signature_columns_if_needed(self: Any) -> None:
        super()._set_signature_columns_if_needed()  # type: ignore[misc]
        if ROW not in self._signature_columns:
            self._signature_columns.append(ROW)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        rows = inputs.pop(ROW, None)
        self._rows_of_batch = None if rows is None else rows.tolist()
        return super()._prepare_inputs(inputs)  # type: ignore[misc]

    @contextmanager
    def _naming_rows(self: Any) -> Iterator[None]:
        """A margin that is not finite is told with its row in the data instead of its place in the batch."""
        try:
            yield
        except MarginError as error:
            if self._rows_of_batch is None:
                raise
            data = "training" if self.model.training else "evaluation"
            where = f"{data} data, row {self._rows_of_batch[error.pair]}"
            raise MarginError(error.pair, error.value, where=where) from None


class WithRows:
    """A collator whose batches also carry the row numbers of their pairs, where the data has them."""

    def __init__(self, collate: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> None:
        self.collate = collate

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.collate(examples)
        if all(ROW in example for example in examples):
            batch[ROW] = torch.tensor([example[ROW] for example in examples])
        return batch


def truncation_sentence(report: dict[str, Any]) -> str:
    """What truncation and the checks did to a data set, in one line."""
    parts = [f"{report['kept']} of {report['rows']} pairs kept", f"{report['shortened']} of them shortened"]
    parts += [f"{count} left out ({reason})" for reason, count in report["dropped"].items()]
    return ", ".join(parts)


def _check_streamed(name: str) -> Any:
    def check(example: dict[str, Any], row: int) -> dict[str, Any]:
        fault = fault_of(example)
        if fault is not None:
            raise DataError(fault, where=f"{name} data, row {row}", fix="remove that row")
        return example

    return check


def _positive(counts: dict[str, int]) -> dict[str, int]:
    return {reason: count for reason, count in counts.items() if count > 0}
