"""Checkpoints beside each other in the engine that will serve them: rates with intervals, and how they were found."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np
import psutil
import torch

from burnish.core.checkpoint import Model, load
from burnish.core.checkpoint.adapter import adapter_files
from burnish.core.errors import EngineError, located
from burnish.core.kinds import UNPACK
from burnish.core.progress import Progress
from burnish.core.statistics import Interval, interval
from burnish.data.read import read_texts
from burnish.evaluate.engines.environments import ENGINES, EngineKind, chosen, interpreter
from burnish.evaluate.engines.process import EngineWorker, Load
from burnish.evaluate.engines.rounds import DISTURBED, Rounds, Shape, batch_of, disturbance, in_turns, shapes
from burnish.evaluate.evaluation import Evaluation, Metric
from burnish.evaluate.measure import device_name, exact, metric, not_measured

if TYPE_CHECKING:
    from burnish.evaluate.stage import Evaluate

VERSION = 1
"""Of the protocol; raised whenever a change here changes numbers."""
_CHARS_PER_TOKEN = 6
_SPARE = 1.2
"""How much more than the largest engine so far must be free for one more."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint to measure.

    Attributes:
        name: unique among those of a measurement.
        place: its directory.
    """

    name: str
    place: Path


def measure_together(
    settings: Evaluate, subjects: Sequence[Subject], *, logs: Path | None = None, progress: bool = False
) -> dict[str, Evaluation]:
    """Speed of all checkpoints in one engine, asked in turns.

    What one engine cannot load is "not measured", with the reason, beside the others.

    Args:
        settings: `engine` and what begins with it, `decode_tokens` and `text`.
        subjects: what is compared; the first decides the dtype that all compute in.
        logs: directory for what the engines say; a temporary one where none is given.
        progress: whether to show a bar.

    Returns:
        {name: its measurement}; empty where `engine` is `auto` and no environment is named.

    Raises:
        EngineError: no environment, another version, or none of the checkpoints runs.
        SettingsError: longer contexts than a model has.
    """
    assert settings.engine is not None
    engine = chosen(settings.engine)
    if engine is None:
        return {}
    models = {subject.name: load(subject.place) for subject in subjects}
    for model in models.values():
        settings.check_engine(model)
    python = interpreter(engine, settings.engine_python)
    place = logs or Path(tempfile.mkdtemp(prefix="burnish-engines-"))
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="burnish-gguf-", dir=place) as files:
        measurement = _Measurement(settings, engine, python, models, place, Path(files), Progress(enabled=progress))
        found = measurement.run(subjects)
    if logs is None:
        shutil.rmtree(place)  # what stopped us is in the message with the path of its log
    return found


@dataclass
class _Measurement:
    """One measurement under way."""

    settings: Evaluate
    engine: EngineKind
    python: Path
    models: Mapping[str, Model]
    logs: Path
    files: Path
    progress: Progress

    def run(self, subjects: Sequence[Subject]) -> dict[str, Evaluation]:
        asked = shapes(self.settings.engine_batches, self.settings.engine_contexts)
        most = max(shape.batch * shape.context for shape in asked)
        prompts = {name: self.prompt_ids(model, most) for name, model in self.models.items()}
        sources, facts, refused = self.sources(subjects)
        session = uuid4().hex[:12]  # ratios are taken of what was asked together
        engines: dict[str, EngineWorker] = {}
        found: dict[str, Rounds] = {}
        with ExitStack() as running:
            together, dtype = True, "auto"
            for name, source in sources.items():
                if engines and not self.fits(engines):
                    together = False
                    break
                try:
                    engines[name] = self.started(name, source, dtype, asked, running)
                except EngineError as error:
                    refused[name] = error
                    continue
                dtype = self.dtype_for_others(engines[name])
            if together and engines:
                found = self.asked(engines, prompts, asked)
        if not together:
            self.progress.log(f"memory holds {len(engines)} of {len(sources)} engines at a time, so one runs at a time")
            engines = {}
            for name, source in sources.items():
                if name in refused:
                    continue
                with ExitStack() as running:
                    try:
                        engines[name] = self.started(name, source, dtype, asked, running)
                        found |= self.asked({name: engines[name]}, prompts, asked)
                    except EngineError as error:
                        refused[name] = error
        if not found:
            first = next(iter(refused))
            raise located(refused[first], first)
        protocol = self.protocol(next(engines[name] for name in found), asked, together)
        for name in found:
            facts[name] |= {
                "session": session,
                "kernels": engines[name].kernels(),
                "dtype": engines[name].facts["dtype"],
            }
        made = {
            name: Evaluation(
                metrics(rounds, engines[name].start_up, protocol["threads"]),
                columns(rounds),
                protocol,
                facts=facts[name],
            )
            for name, rounds in found.items()
        }
        for name, error in refused.items():
            note = f"not measured: {error.what}"
            made[name] = Evaluation(unmeasured(asked, note), {}, protocol, facts=facts.get(name, {}))
        return {subject.name: made[subject.name] for subject in subjects}

    # -- what is loaded ------------------------------------------------------------------------------------------------

    def sources(self, subjects: Sequence[Subject]) -> tuple[dict[str, Path], dict[str, dict[str, Any]], dict[str, Any]]:
        """What the engine reads of each checkpoint, facts about it, and the checkpoints that have no such form."""
        sources, facts, refused = {}, {}, {}
        if self.engine.name == "vllm":
            for one in subjects:
                if adapter_files(one.place):
                    what = "has a LoRA adapter beside its weights, and the engine is given the weights alone"
                    refused[one.name] = EngineError(what, where=str(one.place), fix=f"add it to the weights: {UNPACK}")
                else:
                    sources[one.name], facts[one.name] = one.place, {}
            return sources, facts, refused
        from burnish.core.errors import BurnishError, MissingExtraError
        from burnish.export import write_gguf

        for number, one in enumerate(subjects):
            try:
                file = write_gguf(one.place, self.files / f"{number}.gguf")
            except MissingExtraError:
                raise
            except BurnishError as error:
                refused[one.name] = EngineError(error.what, where=error.where, fix=error.fix)
                continue
            kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(file.types.items()))
            sources[one.name] = file.path
            facts[one.name] = {"file": kinds, "file_bytes": file.num_bytes, "dense": len(file.multiplied_out)}
        return sources, facts, refused

    def prompt_ids(self, model: Model, most: int) -> list[int]:
        """Token ids of the text that prompts are cut from, not many more than are needed."""
        text = "\n\n".join(read_texts(self.settings.text, tokenizer=model.tokenizer))[: _CHARS_PER_TOKEN * most]
        return list(model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    # -- engines -------------------------------------------------------------------------------------------------------

    def started(self, name: str, source: Path, dtype: str, asked: Sequence[Shape], running: ExitStack) -> EngineWorker:
        """An engine that has answered the longest of the batches once: kernels that are not there are missed here."""
        answer = self.settings.decode_tokens + 1
        load_ = Load(
            dtype=dtype,
            compiled=self.settings.engine_compiled,
            threads=torch.get_num_threads(),
            max_length=max(shape.context for shape in asked) + answer,
            max_batch=max(shape.batch for shape in asked),
            max_tokens=max(shape.batch * (shape.context + answer) for shape in asked),
            cache_gib=cache_gib(self.models[name], max(shape.batch * (shape.context + answer) for shape in asked)),
        )
        log = self.logs / f"{self.engine.name}-{name}.log".replace("/", "-")
        engine = EngineWorker(self.engine.name, self.python, source, load_, log=log)
        running.callback(engine.stop)
        with self.progress.task(f"starting {self.engine.called} for {name}", None, "engines") as task:
            engine.start()
            task.advance()
        longest = max(asked, key=lambda shape: shape.context)
        engine.ask(batch_of([1, 2], longest), 2)
        return engine

    def dtype_for_others(self, engine: EngineWorker) -> str:
        """All compute in what the first one does; a GGUF file says itself what it is computed in."""
        return engine.facts["dtype"] if self.engine.name == "vllm" else "auto"

    def fits(self, engines: Mapping[str, EngineWorker]) -> bool:
        """Whether memory holds one more engine that is as large as the largest."""
        return psutil.virtual_memory().available > _SPARE * max(
            engine.facts["peak_memory"] for engine in engines.values()
        )

    def asked(
        self, engines: Mapping[str, EngineWorker], prompts: Mapping[str, Sequence[int]], asked: Sequence[Shape]
    ) -> dict[str, Rounds]:
        return in_turns(
            engines,
            prompts,
            asked,
            num_tokens=self.settings.decode_tokens,
            rounds=self.settings.engine_rounds,
            progress=self.progress,
        )

    # -- the protocol --------------------------------------------------------------------------------------------------

    def protocol(self, engine: EngineWorker, asked: Sequence[Shape], together: bool) -> dict[str, Any]:
        return {
            "version": VERSION,
            "measures": "speed in an engine",
            "engine": f"{engine.facts['engine']} {engine.facts['version']}",
            "instructions": engine.facts["instructions"],
            "mode": mode(self.engine, self.settings.engine_compiled),
            "device": device_name("cpu"),
            "threads": torch.get_num_threads(),
            "batches": [str(shape) for shape in asked],
            "decode_tokens": self.settings.decode_tokens,
            "rounds": self.settings.engine_rounds,
            "text": self.settings.text,
            "in_turns": together,
            "interval": "95 %, Student's t over rounds, on the logarithm",
        }


def mode(engine: EngineKind, compiled: bool) -> str:
    """Whether the network was compiled; llama.cpp knows no other way."""
    if engine is ENGINES["llama.cpp"]:
        return "compiled ahead"
    return "compiled" if compiled else "eager"


def cache_gib(model: Model, num_tokens: int) -> int:
    """GiB that keys and values of so many tokens take in 16 bits, rounded up with some to spare."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return math.ceil(1.25 * num_tokens * 2 * config.num_hidden_layers * heads * width * 2 / 2**30)


# -- figures -----------------------------------------------------------------------------------------------------------


def metrics(rounds: Rounds, start_up: float, threads: int) -> dict[str, Metric]:
    """Rates by shape of the batch (`decode_speed@4x128`), time to the first token, memory, time to start."""
    found: dict[str, Metric] = {}
    for shape, taken in rounds.taken.items():
        over = disturbance(taken, threads)
        note = (
            f"disturbed by other work: wall time more than {DISTURBED} times processor time" if over > DISTURBED else ""
        )
        for name in ("prefill", "decode"):
            found[f"{name}_speed@{shape}"] = metric(rate(getattr(taken, name)), "token/s", note=note)
            found[f"{name}_cpu_speed@{shape}"] = metric(rate(getattr(taken, f"{name}_cpu")), "token/CPU s")
        if shape.batch == 1:
            first = interval(np.asarray(taken.prefill) * shape.context, scale="log")
            found[f"time_to_first_token@{shape}"] = metric(first, "s", note=note)
        found[f"wall_over_cpu@{shape}"] = metric(Interval(over, math.nan, math.nan), "")
    found["start_up_time"] = metric(Interval(start_up, math.nan, math.nan), "s")
    found["engine_peak_memory"] = exact(rounds.peak_memory, "byte")
    return found


def rate(seconds: Sequence[float]) -> Interval:
    """Tokens a second, of seconds a token in every round."""
    return interval(np.ones(len(seconds)), np.asarray(seconds), scale="log")


def unmeasured(asked: Sequence[Shape], note: str) -> dict[str, Metric]:
    names = [f"{name}_speed@{shape}" for shape in asked for name in ("prefill", "decode")]
    return {name: not_measured("token/s", note) for name in names}


def columns(rounds: Rounds) -> dict[str, list[float]]:
    """Seconds a token in every round, for paired intervals: `decode@4x128`, `decode_cpu@4x128`."""
    return {f"{name}@{shape}": values for shape, taken in rounds.taken.items() for name, values in vars(taken).items()}
