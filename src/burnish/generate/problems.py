"""Problems asked of a model, and whether its samples are right: what the rooms share that sample and grade."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from burnish.core.errors import DataError
from burnish.core.made_data import ROWS_FILE
from burnish.data.chat import check_template, written_out
from burnish.verify import Verifier, read_problems, verifier
from burnish.verify.adapter import CORRECT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from burnish.generate.batch import Sample


def problems_of(data: Any, grader: Verifier, *, where: str = "data") -> list[dict[str, Any]]:
    """The problems behind a reference: a file, a directory of rows, or the rows themselves.

    Raises:
        DataError: none, or one that the verifier cannot grade.
    """
    if isinstance(data, str | Path):
        path = Path(data).expanduser()
        return read_problems(path / ROWS_FILE if path.is_dir() else path, grader)
    found = [grader.adapted(row) for row in data or ()]
    for number, problem in enumerate(found, start=1):
        grader.check(problem, where=f"row {number}")
    if not found:
        raise DataError("holds no problems", where=where)
    return found


def question_of(grader: Verifier, problem: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The problem as a chat."""
    return [{"role": "user", "content": grader.prompt(problem)}]


def prompt_of(tokenizer: PreTrainedTokenizerBase, grader: Verifier, problem: Mapping[str, Any]) -> str:
    """What the model is asked, in its chat template and up to where its answer begins.

    Raises:
        DataError: no chat template, or one that cannot write the question.
    """
    check_template(tokenizer, where="data")
    return written_out(tokenizer, question_of(grader, problem), where="data", add_generation_prompt=True)


def try_first(tokenizer: PreTrainedTokenizerBase, data: Any, verifier_name: str) -> None:
    """Reads and writes out the first problem, before any work starts.

    Raises:
        DataError: no problems, one that cannot be graded, or that the chat template cannot write.
    """
    with verifier(verifier_name) as grader:
        prompt_of(tokenizer, grader, problems_of(data, grader)[0])


def is_right(sample: Sample, grader: Verifier, problem: Mapping[str, Any]) -> bool:
    """Whether a sample came to its end, and to the right one."""
    return sample.finish_reason == "stop" and grader.score(sample.text, problem) >= CORRECT
