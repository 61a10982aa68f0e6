"""One node in a process of its own: `python -m burnish.core.node SPEC.json`, started by the runner.

It loads its input from disk, runs the stage (or measures the checkpoint), and ends with an atomic save. An error that
the user can mend is written to the spec's error file, so that the runner can show it as one sentence.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from burnish.core.checkpoint import cause_of, remedy, write_atomically
from burnish.core.errors import BurnishError, CheckpointWarning, OutputError, StageError
from burnish.core.memory import peak_resident_bytes
from burnish.core.recipe import START
from burnish.core.runner import NODE_ERROR_STATUS

KEPT = "what is finished is kept, and the same command continues"


def main(spec_file: str) -> int:
    spec = json.loads(Path(spec_file).read_text(encoding="utf-8"))
    die_with(spec["parent"] if "TORCHELASTIC_RUN_ID" not in os.environ else os.getppid())
    warnings.simplefilter("ignore", CheckpointWarning)  # said by the planner
    try:
        stage_class = _resolve(spec["stage"])
        settings = stage_class.parse(spec["settings"], where="its settings")
        _TASKS[spec["task"]](settings, spec)
    except BurnishError as error:
        report(spec, error)
        return NODE_ERROR_STATUS
    except MemoryError:
        report(spec, _out_of_memory(spec))
        return NODE_ERROR_STATUS
    except RuntimeError as error:
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        report(spec, _out_of_memory(spec))
        return NODE_ERROR_STATUS
    except SafetensorError as error:
        cause = cause_of(error)
        report(spec, OutputError(f"could not be written ({cause})", fix=f"{remedy(cause)}; {KEPT}"))
        return NODE_ERROR_STATUS
    except OSError as error:
        traceback.print_exc(file=sys.stdout)  # into the node's log
        cause = str(error.strerror or error)
        advice = f"{remedy(cause)}; {KEPT}"
        report(spec, OutputError(f"{cause} ({error.filename or 'no file named'})", fix=advice))
        return NODE_ERROR_STATUS
    return 0


def _run_stage(stage: Any, spec: dict[str, Any]) -> None:
    from burnish.core.checkpoint import Lineage, Model, load, pick_device
    from burnish.core.ledger import Ledger
    from burnish.core.progress import Progress
    from burnish.core.stage import Context, seeded_generator

    started = time.monotonic()
    rank = int(os.environ.get("RANK", "0"))
    ledger = Ledger(Path(spec["run"]) if rank == 0 else None, node=spec["node"])
    model = load(spec["model"])
    model.trust_hash(spec["model_hash"])
    ctx = Context(
        inputs=spec["inputs"],
        work_dir=Path(spec["work"]),
        device=pick_device(stage.device),
        generator=seeded_generator(stage.seed),
        progress=Progress(enabled=rank == 0),
        ledger=ledger,
        may_change=frozenset(spec["may_change"]),
    )
    result: Model = stage.run(model, ctx)
    if rank != 0:
        return
    result.lineage = Lineage(
        kind=result.lineage.kind,
        weights=result.lineage.weights,
        stage=stage.name,
        stage_version=stage.version,
        settings=stage.canonical(),
        seed=stage.seed,
        key=spec["key"],
        parents=spec["parents"],
        base_model=model.name,
        licence=model.lineage.licence,
        continued=result.lineage.continued,
        methods=result.lineage.methods,
    )
    result.save(spec["target"], overwrite=spec["replace"])
    ledger.append(
        "stage",
        stage=stage.name,
        settings=stage.model_dump(mode="json"),
        key=spec["key"],
        parents=spec["parents"],
        checkpoint=result.lineage.hash,
        continued=result.lineage.continued,
        seconds=time.monotonic() - started,
        peak_memory_bytes=peak_resident_bytes(),
    )


def _evaluate(evaluate: Any, spec: dict[str, Any]) -> None:
    from burnish.core.checkpoint import load
    from burnish.core.ledger import Ledger, protocol_hash

    model = load(spec["model"])
    model.trust_hash(spec["model_hash"])
    reference = load(evaluate.reference) if evaluate.reference else None
    evaluation = evaluate(model, reference=reference, progress=True)
    if spec["node"] != START:
        model.lineage.write_measured(Path(spec["model"]), evaluation.metrics, protocol_hash(evaluation.protocol))
    # Last: with this row the checkpoint counts as measured, its card included.
    ledger = Ledger(Path(spec["run"]), node=spec["node"])
    evaluation.record(ledger, checkpoint=spec["model_hash"], path=spec["model"], request=spec["request"])


def _together(evaluate: Any, spec: dict[str, Any]) -> None:
    """Measures all checkpoints of a run beside each other."""
    from burnish.core.ledger import Ledger

    run, checkpoints = Path(spec["run"]), spec["checkpoints"]
    places = {name: Path(place) for name, (place, _) in checkpoints.items()}
    for name, evaluation in evaluate.together(places, logs=run / "logs", progress=True).items():
        place, digest = checkpoints[name]
        evaluation.record(Ledger(run, node=name), checkpoint=digest, path=place, request=spec["request"])


_TASKS = {"stage": _run_stage, "evaluate": _evaluate, "together": _together}


def _resolve(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def _out_of_memory(spec: dict[str, Any]) -> StageError:
    settings = getattr(_resolve(spec["stage"]), "memory_settings", "")
    advice = f"lower {settings}" if settings else "use a machine or device with more memory"
    return StageError("ran out of memory", fix=advice)


def report(spec: dict[str, Any], error: BurnishError) -> None:
    """Writes down an error for the runner to raise."""
    content = {"type": type(error).__name__, "what": error.what, "where": error.where, "fix": error.fix}
    write_atomically(Path(spec["error_file"]), json.dumps(content))  # several processes may have the same to say


def die_with(parent: int) -> None:
    """Asks the kernel to end this process when its parent dies, so that a killed run leaves nothing running."""
    if sys.platform != "linux":
        return
    set_parent_death_signal = 1
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
