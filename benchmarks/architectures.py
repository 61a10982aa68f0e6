"""Which model classes of transformers go through the stages, and does the stock loader compute the same afterwards?

    python benchmarks/architectures.py --work DIR [--minutes 9] [--only gpt_oss ...]

Small random models of the real classes, every optional part switched on, written by transformers and read by burnish.
Of each: is every saved tensor described exactly once, under its name on disk; is the model the same when it is saved
and read by the stock class; is a slimmed mixture (narrower experts with refit, or fewer experts) and is a trained model
what the stock class reads, bit for bit; does a quantized one compute the same in the stock class; and does the
evaluation find no divergence of a model from itself.

Each class is one file in the work directory. `make test-long` runs the same, see `tests/arch/test_classes.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import experiment

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

STEPS = ("tensors", "reload", "slim", "quantize", "train", "evaluate")
SIZES = {"intermediate_size": 160}
"""Not a power of two, and a multiple of the group size."""
COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")


def kinds() -> list[str]:
    from burnish.arch import known_model_types

    return known_model_types()


def outcome(kind: str) -> dict[str, Any]:
    """{"class": its name, "steps": {step: "yes", "" where it is not for this class, or what went wrong}}."""
    import torch

    import burnish
    from small_models import KINDS, PROSE, make, small_tokenizer

    torch.set_num_threads(1)
    with TemporaryDirectory() as directory:
        place = Path(directory)
        count = next((key for key in COUNTS if key in KINDS.get(kind, {})), None)
        made = make(kind, disturbed=True, **SIZES | ({count: 8} if count else {}))
        made.save_pretrained(place / "start")
        small_tokenizer().save_pretrained(place / "start")
        run = _Run(burnish.load(place / "start"), place, PROSE.read_text())
        run.model.module.set_experts_implementation("eager")
        found = {step: attempt(getattr(run, step)) for step in STEPS}
        return {"class": type(made).__name__, "steps": found}


def attempt(step: Callable[[], bool | None]) -> str:
    from burnish.core.errors import SettingsError

    try:
        done = step()
    except SettingsError as error:
        return f"refused: {error}"
    except Exception as error:  # noqa: BLE001 - the question is whether there is any, of whichever library
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return "" if done is None else "yes" if done else "differs"


class _Run:
    """One small model, and the questions asked of it. True and False are answers; None says that it is not asked."""

    def __init__(self, model: Any, place: Path, text: str) -> None:
        self.model, self.place, self.text = model, place, text

    def tensors(self) -> bool:
        """Whether views cover every saved value once, and have its name on disk."""
        import torch
        from safetensors import safe_open

        from burnish.arch import matrices, vectors

        module = self.model.module
        count = {name: torch.zeros_like(tensor) for name, tensor in module.state_dict(keep_vars=True).items()}
        views, rest = matrices(module), vectors(module)
        for view in views:
            view.of(count[view.parameter]).add_(1)
        for vector in rest:
            count[vector.parameter].add_(1)
        tied = {name for view in views for name in view.tied}
        once = all(bool((tensor == 1).all()) for name, tensor in count.items() if name not in tied)
        with safe_open(self.place / "start" / "model.safetensors", "pt") as file:
            names = set(file.keys())
        return once and names == {view.disk for view in views} | {vector.name for vector in rest}

    def reload(self) -> bool:
        return self._same(self.model, "again")

    def slim(self) -> bool | None:
        """Narrower experts, fewer of them, fewer attention groups, as far as the class has them."""
        import burnish
        from burnish.arch import describe
        from burnish.slim.target import cuts_groups

        facts = describe(self.model.module).experts
        if facts is None:
            return None
        common: dict[str, Any] = {"tokens": 512, "length": 32, "allow_unseen": True}
        answers = []
        if not facts.shares_width:
            width = facts.intermediate_size // 16 * 8
            narrow = burnish.Slim(width=width, multiple=8, refit="alone", **common)
            answers.append((narrow, {"intermediate_size": width}))
        answers.append((burnish.Slim(method="drop", num_experts=4, **common), {"num_experts": 4}))
        if cuts_groups(self.model.config):
            answers.append((burnish.Slim(num_key_value_heads=1, **common), {}))
        for number, (stage, wanted) in enumerate(answers):
            cut = stage(self.model, calibration=[self.text])
            sizes = describe(cut.module).experts
            if not self._same(cut, f"slim{number}") or any(getattr(sizes, k) != v for k, v in wanted.items()):
                return False
        return True

    def quantize(self) -> bool:
        """Nearest rounding, packed, computed by the stock class."""
        import torch

        import burnish

        rounded = burnish.Quantize(method="rtn", bits=4, group_size=8)(self.model)
        expected = self._logits(rounded.module)
        rounded.save(self.place / "packed")
        read = self._stock("packed", packed=True)
        torch.testing.assert_close(self._logits(read), expected, rtol=1e-5, atol=1e-5)
        return True

    def train(self) -> bool:
        import torch

        import burnish
        from burnish.core.errors import SettingsError

        before = {name: tensor.clone() for name, tensor in self.model.module.state_dict().items()}
        settings: dict[str, Any] = {"steps": 2, "batch": 2, "context": 32, "lr": 0.01}
        given: dict[str, Any] = {"data": [self.text], "work_dir": self.place / "work"}
        try:
            trained = burnish.Train(**settings)(self.model, **given)
        except SettingsError as error:
            if error.where != "balance":
                raise
            trained = burnish.Train(**settings, balance=0)(self.model, **given)  # some classes only have the key
        moved = any(not torch.equal(before[name], tensor) for name, tensor in trained.module.state_dict().items())
        return moved and self._same(trained, "trained")

    def evaluate(self) -> bool:
        """Whether a model is no different from itself, and its perplexity is a number."""
        import burnish

        stage = burnish.Evaluate(num_windows=2, context=32, max_chars=2000, speed=False)
        metrics = stage(self.model, self.model, text=[self.text]).metrics
        return metrics["kl_divergence"]["value"] < 1e-6 and 1 < metrics["perplexity"]["value"] < float("inf")

    # -- the stock class -----------------------------------------------------------------------------------------------

    def _same(self, model: Any, name: str) -> bool:
        """Whether the stock class reads what burnish wrote, bit for bit."""
        import torch

        model.save(self.place / name)
        read = self._stock(name)
        state, given = read.state_dict(), model.module.state_dict()
        same = state.keys() == given.keys() and all(torch.equal(state[key], given[key]) for key in given)
        model.module.set_experts_implementation("eager")
        return same and torch.equal(self._logits(read), self._logits(model.module))

    def _stock(self, name: str, *, packed: bool = False) -> Any:
        from transformers import AutoModelForCausalLM, CompressedTensorsConfig

        more = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if packed else {}
        return AutoModelForCausalLM.from_pretrained(self.place / name, experts_implementation="eager", **more)

    def _logits(self, module: Any) -> Any:
        import torch

        ids = torch.randint(3, 300, (2, 24), generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            return module.eval()(input_ids=ids, use_cache=False).logits


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.keeps()
    parser.add_argument("--only", nargs="*", choices=kinds(), default=kinds())
    arguments = parser.read()
    kept = experiment.Kept(arguments.work)
    kept.run(lambda: ["olmoe"] if arguments.smoke else arguments.only, outcome, arguments.minutes)
    found = {kind: kept.read(kind) for kind in kinds() if kept.has(kind)}
    experiment.record(arguments.out, __doc__, {"sizes": SIZES, "classes": found})


# -- tables ------------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    lines = [
        [f"`{kind}`", f"`{found['class']}`", *(word(found["steps"][step]) for step in STEPS)]
        for kind, found in results["classes"].items()
    ]
    return {"classes": experiment.table(["`model_type`", "class", *STEPS], lines)}


def word(answer: str) -> str:
    return answer.replace("|", "/") if answer else "no experts"


if __name__ == "__main__":
    main()
