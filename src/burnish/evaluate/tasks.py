"""Task scores through lm-eval, as rows for the same ledger.

lm-eval (Biderman et al.: Lessons from the Trenches on Reproducible Evaluation of Language Models, 2024,
arXiv:2405.14782) knows the tasks, their prompts and their scoring; here it is handed a model that is already loaded,
and its results become metrics with intervals and per-sample columns for paired comparison. Its own tasks fetch their
data from the hub. Offline, a task is a YAML file, or a dictionary such as `minimal_pairs` makes, whose data is a file:

    results = evaluate_tasks(model, [minimal_pairs()])
    results["blimp_670"].metrics["acc"]
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from burnish.core.checkpoint import Model, compute_dtype, pick_device
from burnish.core.errors import DataError, MissingExtraError, SettingsError
from burnish.core.statistics import Interval, interval, student_quantile
from burnish.data.read import TEXTS
from burnish.evaluate.evaluation import Evaluation
from burnish.evaluate.measure import check_kind, device_name, metric, network

if TYPE_CHECKING:
    from lm_eval.tasks import TaskManager

Task = str | Path | dict[str, Any]
"""A name that lm-eval knows, a YAML file, or a configuration."""


BLIMP_SAMPLE = TEXTS / "blimp_670.jsonl.gz"
"""Ten pairs of each of the 67 paradigms of BLiMP (2020, arXiv:1912.00582), CC BY 4.0; the first 67 are one of each."""


def minimal_pairs(
    data: str | Path = BLIMP_SAMPLE, *, good: str = "good", bad: str = "bad", name: str | None = None
) -> dict[str, Any]:
    """A task that asks which of two sentences is more probable, from JSON lines; needs no hub.

    Set up as lm-eval's own `blimp` tasks are: no prompt, and a space before the sentence.

    Args:
        data: a `.jsonl` or `.jsonl.gz` file; when not given, the sample of BLiMP that ships with burnish.
        good, bad: the columns of the acceptable and of the unacceptable sentence.
        name: what the task is called in results; that of the file when not given.

    Raises:
        DataError: there is no such file.
    """
    path = Path(data).expanduser()
    if not path.is_file():
        raise DataError("no such file", where=str(path))
    return {
        "task": name or path.name.partition(".")[0],
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(path.resolve())}},
        "validation_split": "validation",
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": f"{{{{[{good}, {bad}]}}}}",
        "num_fewshot": 0,
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
        "metadata": {"version": 1.0},
    }


def evaluate_tasks(
    model: Model,
    tasks: Sequence[Task],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_size: int = 1,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Evaluation]:
    """Scores of a causal language model on tasks, one `Evaluation` per task.

    Args:
        model: what to measure; left as it is.
        tasks: names that lm-eval knows (`hellaswag`, fetched from the hub), YAML files, or configurations.
        limit: the first so many samples of each task; all when not given.
        num_fewshot: examples in the prompt; the task's own number when not given.
        batch_size: samples per forward pass; lower it when memory runs out.
        device: auto, cpu, cuda or cuda:N.
        seed: of whatever lm-eval draws (few-shot examples).

    Returns:
        {task: evaluation}. Metrics have 95 % Student intervals from lm-eval's standard errors, and shares of samples,
        such as accuracies, those of their counts. `sequences` has a column `doc` of sample numbers and one column per
        metric that is scored sample by sample.

    Raises:
        MissingExtraError: lm-eval is not installed.
        SettingsError: lm-eval does not know a task.
        DataError: a task's data cannot be read, or fetched.
    """
    specs = [str(task) if isinstance(task, Path) else task for task in tasks]
    place = pick_device(device)
    dtype = compute_dtype(place)
    results = _results(model, specs, dtype, place, batch_size, seed, num_fewshot=num_fewshot, limit=limit)
    protocol = {"engine": _engine(), "dtype": str(dtype).removeprefix("torch."), "device": device_name(place)}
    protocol |= {"batch": batch_size, "threads": torch.get_num_threads(), "limit": limit, "seed": seed}
    return {
        task: Evaluation(
            metrics=_metrics(results["results"][task], columns := _columns(samples, results["results"][task])),
            sequences=columns,
            protocol=protocol
            | {
                "task": task,
                "task_version": results["versions"].get(task),
                "task_hash": _samples_hash(samples),
                "num_fewshot": results["n-shot"].get(task),
                "num_samples": len(samples),
            },
        )
        for task, samples in results["samples"].items()
    }


def _results(
    model: Model,
    specs: list[str | dict[str, Any]],
    dtype: torch.dtype,
    device: str,
    batch_size: int,
    seed: int,
    **settings: int | None,
) -> dict[str, Any]:
    """What lm-eval returns: scores and samples by task."""
    try:
        from datasets.exceptions import DatasetsError
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "lm-eval", "eval", "running tasks") from None

    check_kind(model)
    stock = any(isinstance(spec, str) and not spec.endswith((".yaml", ".yml")) for spec in specs)
    manager = TaskManager(include_defaults=stock)  # indexing lm-eval's own tasks takes seconds
    _check_known(specs, manager)
    # lm-eval's decorators hide the signatures of both from type checkers.
    make_engine: Any = HFLM
    run_tasks: Any = simple_evaluate
    engine = make_engine(
        pretrained=network(model, dtype=dtype, device=device), tokenizer=model.tokenizer, batch_size=batch_size
    )
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), seed)
    try:
        return run_tasks(
            model=engine, tasks=specs, task_manager=manager, log_samples=True, bootstrap_iters=1000, **seeds, **settings
        )
    except (OSError, ValueError, DatasetsError) as error:
        first = str(error).strip().split("\n")[0]
        raise DataError(
            f"lm-eval could not read the data of {', '.join(map(_name, specs))} ({first})",
            fix="check the file; lm-eval's own tasks need the network or the hub's cache",
        ) from error


def _name(spec: str | dict[str, Any]) -> str:
    return spec if isinstance(spec, str) else str(spec.get("task", "a task"))


def _engine() -> str:
    from importlib.metadata import version

    return f"lm-eval {version('lm-eval')} on transformers {version('transformers')}"


def _check_known(specs: Sequence[str | dict[str, Any]], manager: TaskManager) -> None:
    for spec in specs:
        if not isinstance(spec, str):
            continue
        if spec.endswith((".yaml", ".yml")):
            if not Path(spec).is_file():
                raise DataError("no such task file", where=spec)
        elif spec not in manager.all_tasks:
            raise SettingsError(
                f"lm-eval knows no task {spec!r}", fix="see `lm_eval ls tasks`, or give a YAML file of your own"
            )


def _metrics(row: dict[str, Any], columns: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """lm-eval's {"acc,none": 0.8, "acc_stderr,none": 0.02} as metrics with intervals: of a share that of its counts."""
    num_samples = len(columns["doc"])
    metrics, reach = {}, student_quantile(num_samples) if num_samples > 1 else math.nan
    for key, value in row.items():
        name, _, kind = key.partition(",")
        if not kind or name.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = row.get(f"{name}_stderr,{kind}")
        half = reach * error if isinstance(error, int | float) else math.nan
        found = Interval(float(value), value - half, value + half)
        scores = np.array(columns.get(name, []))
        if len(scores) and set(scores) <= {0.0, 1.0} and math.isclose(scores.mean(), value):
            found = interval(scores, np.ones(num_samples), scale="logit")
        label = name if kind == "none" else f"{name} ({kind})"
        metrics[label] = metric(found, "")
    return metrics


def _samples_hash(samples: list[dict[str, Any]]) -> str:
    """sha256 over what lm-eval asked: documents, prompts and targets."""
    digest = hashlib.sha256()
    for sample in sorted(samples, key=lambda sample: sample["doc_id"]):
        for key in ("doc_hash", "prompt_hash", "target_hash"):
            digest.update(sample[key].encode())
    return digest.hexdigest()


def _columns(samples: list[dict[str, Any]], row: dict[str, Any]) -> dict[str, list[float]]:
    """Sample numbers and the scores of every metric that each sample has a number for, in the order of the samples."""
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    columns = {"doc": [float(sample["doc_id"]) for sample in samples]}
    for name in {key.partition(",")[0] for key in row}:
        scores = [float(score) for sample in samples if isinstance(score := sample.get(name), int | float)]
        if scores and len(scores) == len(samples):
            columns[name] = scores
    return columns
