"""Does a student come closer to its teacher when hidden states are compared beside the divergence, at equal tokens?

    python benchmarks/activation.py --model models/smollm2 --work runs/activation --minutes 8   # again, until done

The teacher is SmolLM2-135M; the student is the same with half of its 30 layers, those that change the least taken out
(`slim --method depth`). It is taught for 50 steps of one row of 128 tokens of the WikiText-2 validation text, in
bfloat16, by the forward KL alone, and by that with the hidden states of all layers beside it. On the first seed the
learning rate is chosen for the KL alone, which the other way then has too, and that chooses the coefficient of the
hidden states. A seed is an order of the text.

Measured on 64 windows of the WikiText-2 test text, of which every fourth chooses and the rest is reported:
KL(teacher || student) a token, and the loss on the text. And, each in a process of its own, the largest resident
memory above the libraries' of the teacher's forward pass, of the student's step (forward and backward, float32, logits
a stretch at a time), and of a step of distillation with hidden states, on one row of 1,024 tokens.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import byte_windows
import experiment
import numpy as np

LAYERS, STEPS, ROWS, WINDOWS, CONTEXT = 15, 50, 1, 64, 1024
RATES, COEFFICIENTS = ((3e-4,), (0.3,)) if experiment.SMOKE else ((1e-4, 3e-4, 1e-3), (0.3, 3.0))
BASELINE, OTHER = "KL", "KL and hidden states"
WAYS = (BASELINE, OTHER)
TEACHER, STUDENT, ALL, CHOSEN = "teacher's forward", "student's step", "all layers", "three layers"
MEMORY: dict[str, tuple[int, ...]] = {TEACHER: (), STUDENT: (), ALL: tuple(range(LAYERS)), CHOSEN: (4, 9, 14)}
"""Whose memory is measured: {name: layers of the student, from 0, whose hidden states are compared}."""
MEASURED = ("kl", "losses")


class Bench(byte_windows.Bench):
    """What is measured, by name: "memory; side", "student", "seed; way", and with what is searched over behind."""

    def __init__(self, work: Path, *, smoke: bool) -> None:
        super().__init__(work, smoke=smoke)
        self.num_windows = min(self.num_windows, WINDOWS)
        self._models = dict[str, Any]()

    def names(self) -> list[str]:
        tried = [searched(way, chosen) for way in WAYS for chosen in self.settings_of(way)]
        return ["student", *(f"memory; {side}" for side in MEMORY), *tried, *self.ends()]

    def ends(self) -> list[str]:
        return [f"{seed}; {way}" for seed in self.seeds for way in WAYS]

    def settings_of(self, way: str) -> list[dict[str, float]]:
        """What is searched over; the rate must have been chosen before coefficients are asked for."""
        rates = [{"lr": lr} for lr in RATES]
        if way == BASELINE:
            return rates
        if not all(self.has(searched(BASELINE, one)) for one in rates):
            return []
        return [self.chosen(BASELINE) | {"hidden": one} for one in COEFFICIENTS]

    def measure(self, name: str) -> dict[str, Any]:
        if name == "student":
            return self.beside(self.student)
        number, way, *rest = name.split("; ")
        if number == "memory":
            return self.memory(way)
        chosen = {key: float(value) for key, value in (part.split() for part in rest)} or self.chosen(way)
        if not rest and int(number) == byte_windows.SEEDS[0]:  # is what the search has measured
            return self.read(searched(way, chosen)) | {"chosen": chosen}
        return self.beside(self.taught(int(number), chosen)) | {"chosen": chosen}

    @property
    def teacher(self) -> Any:
        import burnish

        if "teacher" not in self._models:
            self._models["teacher"] = burnish.load(OPTIONS.model)
        return self._models["teacher"]

    @property
    def student(self) -> Any:
        import burnish

        place = self.work / "student"
        if not place.is_dir():
            stage = burnish.Slim(method="depth", num_layers=LAYERS, score="influence", tokens=2048, length=128)
            stage(self.teacher, calibration=[self.train_text]).save(place)
        return burnish.load(place)

    def taught(self, seed: int, way: dict[str, Any]) -> Any:
        import burnish

        steps = 1 if self.smoke else STEPS
        settings = self.training(seed, steps, way["lr"]) | {"batch": ROWS, "precision": "bfloat16", "alpha": 1.0} | way
        return burnish.Distill(**settings)(self.student, data=[self.train_text], teacher=self.teacher)

    def ids(self) -> Any:
        return byte_windows.windows(self.teacher.tokenizer, self.test_text, self.num_windows)

    def beside(self, model: Any) -> dict[str, Any]:
        """Divergence from the teacher and loss on the text of every window."""
        import torch

        from burnish.train.maths.divergence import forward_kl

        found: dict[str, list[float]] = {what: [] for what in MEASURED}
        teacher, student = self.teacher.module.eval(), model.module.eval()
        with torch.no_grad():
            for part in self.ids().split(4):
                ours, theirs = (
                    module(input_ids=part, use_cache=False).logits[:, :-1].float() for module in (student, teacher)
                )
                found["kl"] += forward_kl(ours, theirs).mean(1).tolist()
                losses = torch.nn.functional.cross_entropy(ours.mT, part[:, 1:], reduction="none")
                found["losses"] += losses.mean(1).tolist()
        parameters = sum(parameter.numel() for parameter in student.parameters())
        return {what: [round(value, 6) for value in values] for what, values in found.items()} | {
            "parameters": parameters
        }

    def memory(self, side: str) -> dict[str, Any]:
        _ = self.student  # lies on disk now
        options = ["--model", OPTIONS.model, "--work", self.work, "--side", side, *(["--smoke"] if self.smoke else [])]
        command = [sys.executable, __file__, *map(str, options), "--out", str(self.work / "unused.json")]
        made = subprocess.run(command, check=True, capture_output=True, text=True)
        return json.loads(made.stdout.splitlines()[-1])

    def chosen(self, way: str) -> dict[str, float]:
        return min(self.settings_of(way), key=lambda one: self.score(searched(way, one)))

    def score(self, name: str) -> float:
        return float(np.array(self.read(name)["kl"])[byte_windows.TUNING[: self.num_windows]].mean())

    def part(self, names: list[str], what: str) -> np.ndarray:
        return np.array([run[what] for run in self.runs(names)])[:, ~byte_windows.TUNING[: self.num_windows]]


def searched(way: str, chosen: dict[str, float]) -> str:
    return "; ".join([str(byte_windows.SEEDS[0]), way, *(f"{name} {value:g}" for name, value in chosen.items())])


def step(side: str, model: Path, student: Path, context: int) -> dict[str, float]:
    """The largest memory of one step in this process, in bytes above what the libraries take."""
    import torch

    import burnish
    from burnish.arch import head_of
    from burnish.core.memory import peak_resident_bytes
    from burnish.distill.losses import Distillation, Matched
    from burnish.train.losses import HeadLoss, model_inputs

    torch.set_num_threads(1)
    before = peak_resident_bytes()
    ids = torch.randint(0, 49_000, (1, context + 1), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids[:, :-1], "targets": ids[:, 1:]}
    teacher = None if side == STUDENT else burnish.load(model, dtype=torch.float32).module.eval()
    if teacher is not None and side == TEACHER:
        with torch.no_grad():
            teacher.base_model(**model_inputs(batch))
    else:
        module = burnish.load(student, dtype=torch.float32).module.train()
        head = head_of(module)
        assert head is not None, "the model's head is one matrix"
        for parameter in module.parameters():
            parameter.grad = torch.zeros_like(parameter)
        loss: Any = HeadLoss(head)
        if teacher is not None:
            matched = Matched.of(LAYERS, teacher.config.num_hidden_layers, list(MEMORY[side]))
            teacher_head = head_of(teacher)
            assert teacher_head is not None, "the model's head is one matrix"
            loss = Distillation(teacher, hidden=1.0, matched=matched, head=head, teacher_head=teacher_head)
        loss(module, batch).total.backward()
    return {"bytes": peak_resident_bytes() - before}


def summary(bench: Bench) -> dict[str, Any]:
    def names(way: str) -> list[str]:
        return [f"{seed}; {way}" for seed in bench.seeds]

    base, rows = {what: bench.part(names(BASELINE), what) for what in MEASURED}, {}
    for way in WAYS:
        runs = bench.runs(names(way))
        row: dict[str, Any] = {"chosen": runs[0]["chosen"], "cpu_seconds": [run["cpu_seconds"] for run in runs]}
        for what in MEASURED:
            values = bench.part(names(way), what)
            row[what] = {"mean": float(values.mean()), "by_seed": values.mean(1).tolist()}
            row[what]["against"] = {"name": BASELINE} | byte_windows.against(values, base[what])
        rows[way] = row
    student = {what: float(bench.part(["student"], what).mean()) for what in MEASURED}
    ids, tuning = bench.ids().numpy(), byte_windows.TUNING[: bench.num_windows]
    trained = byte_windows.slices(bench.teacher.tokenizer, bench.test_text)["training"]
    tried = [searched(way, one) for way in WAYS for one in bench.settings_of(way)]
    seconds = [bench.read(name)["cpu_seconds"] for name in {*tried, *bench.ends()} - set(names_of_first(bench))]
    return {
        "settings": {"layers": LAYERS, "steps": STEPS, "rows": ROWS, "length": byte_windows.LENGTH, "context": CONTEXT},
        "slices": {
            "tuning": [experiment.digest(ids[tuning])],
            "reporting": [experiment.digest(ids[~tuning])],
            "training": trained,
        },
        "seeds": list(bench.seeds),
        "student": student | {"parameters": bench.read("student")["parameters"]},
        "search": {name: bench.score(name) for name in tried},
        "cpu_seconds": sum(seconds),
        "memory": {side: bench.read(f"memory; {side}")["bytes"] for side in MEMORY},
        "summary": rows,
    }


def names_of_first(bench: Bench) -> list[str]:
    """Ends of the first seed, which the search has measured already."""
    return [f"{bench.seeds[0]}; {way}" for way in WAYS]


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    rows, student, memory = results["summary"], results["student"], results["memory"]
    rule = experiment.rule(rows[BASELINE]["kl"]["against"])
    lines = [["not taught", f"{student['kl']:.4f}", "", f"{student['losses']:.4f}", "", "", ""]]
    for way, row in rows.items():
        cells = []
        for what in MEASURED:
            against = "" if way == BASELINE else experiment.cell(row[what]["against"], "+.4f")
            cells += [f"{row[what]['mean']:.4f}", against]
        chosen = ", ".join(f"{name} {value:g}" for name, value in row["chosen"].items())
        lines.append([way, *cells, chosen, f"{np.mean(row['cpu_seconds']):.0f}"])
    columns = f"{len(results['seeds'])} seeds, nats per token | KL from the teacher: | against KL alone ({rule}): "
    columns += "| text: | against: | chosen | CPU seconds:"
    apart = memory[TEACHER] + memory[STUDENT]
    peaks = [[side, f"{memory[side] / 1e9:.2f}", ""] for side in (TEACHER, STUDENT)]
    for side in (ALL, CHOSEN):
        peaks.append([f"distillation, {side}", f"{memory[side] / 1e9:.2f}", f"{memory[side] / apart:.3f}"])
    title = f"a step on {results['settings']['context']:,} tokens | peak GB: | of the first two together:"
    return {"ways": experiment.table(columns, lines), "memory": experiment.table(title, peaks)}


if __name__ == "__main__":
    COMMAND = experiment.Command(__file__, __doc__)
    COMMAND.add_argument("--model", type=Path, default=Path("models/smollm2"))
    COMMAND.add_argument("--side", choices=list(MEMORY), help="measure the memory of this one in this process")
    COMMAND.keeps("directory of the student and of what has been measured")
    OPTIONS = COMMAND.read()
    if OPTIONS.side:
        tokens = 64 if OPTIONS.smoke else CONTEXT
        print(json.dumps(step(OPTIONS.side, OPTIONS.model, Path(OPTIONS.work) / "student", tokens)))
    else:
        import torch

        torch.set_num_threads(1)
        BENCH = Bench(OPTIONS.work, smoke=OPTIONS.smoke)
        note = "one thread, shared with other work; CPU times only"
        experiment.answer(BENCH, OPTIONS, __doc__, lambda: summary(BENCH), tables, note=note)
