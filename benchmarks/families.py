"""Do models of 40 families take the same two steps of NorMuon plain, compiled, under DDP, FSDP2 and with adapters?

    python benchmarks/families.py --work DIR [--minutes 9] [--only llama ...]

Small random models of the real classes of transformers, in float64. `NorMuon.for_model` takes the wrapped model; two
steps on two rows of 12 tokens must leave the weights of the plain model to `EQUAL` (a step has a root mean square of
2e-3; parts of some models are float32 whatever the weights are), and every parameter must have moved or had no
gradient. "compiled" is torch.compile with its backend aot_eager, which traces forward and backward and compiles
nothing; the `FEW` are compiled by inductor too, where there is a C++ compiler, and trained by two processes with half
of the rows each. DDP and FSDP2 are of one process else. PEFT gives every linear layer a LoRA adapter, as `burnish
train --lora-rank 4` does: these are trained, and nothing else moves.

Each family is one file in the work directory. `make test-long` runs the same, see `tests/train/test_families.py`.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import experiment

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

# fmt: off
FAMILIES = [
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2", "gemma3_text",
    "phi", "phi3", "phimoe", "gpt2", "gpt_neox", "gpt_bigcode", "gpt_oss", "opt", "bloom", "falcon", "mpt", "olmo",
    "olmo2", "olmo3", "olmoe", "cohere", "cohere2", "granite", "granitemoe", "smollm3", "stablelm", "starcoder2",
    "deepseek_v2", "deepseek_v3", "glm4", "nemotron", "biogpt", "minimax", "mamba", "lfm2",
]
# fmt: on
FEW = ("llama", "qwen2_moe", "gpt2", "gpt_neox")
WRAPPERS = ("compiled", "DDP", "FSDP2", "PEFT")
MORE = ("inductor", "DDP of 2", "FSDP2 of 2")
EQUAL, LR, STEPS = 1e-5, 0.01, 2


def outcome(family: str, wrapper: str) -> dict[str, Any]:
    """{"difference": the largest between a weight and that of the plain model}, or {"fault": what went wrong}."""
    import torch

    torch.set_num_threads(1)
    try:
        if wrapper == "PEFT":
            return {"difference": trained_beside_adapters(family)}
        if wrapper.endswith(" of 2"):
            from processes import together

            found = together(2, _one_of_two, family, wrapper.removesuffix(" of 2"))[0]
        else:
            with group_of_one(wrapper in ("DDP", "FSDP2")):
                found = after_steps(WRAP[wrapper](made(family)), rows())
        plain = after_steps(made(family), rows())
    except Exception as error:  # noqa: BLE001 - the question is whether there is any, of whichever library
        return {"fault": f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"}
    finally:
        torch._dynamo.reset()
    difference = max(float((one - other).abs().max()) for one, other in zip(found, plain, strict=True))
    if not difference <= EQUAL:
        return {"fault": f"weights differ by {difference:.1e}"}
    return {"difference": difference}


def made(family: str) -> Any:
    import torch

    from small_models import make

    return make(family, dtype=torch.float64)


def rows() -> Any:
    import torch

    return torch.arange(24).reshape(2, 12)


def after_steps(model: Any, inputs: Any) -> list[Any]:
    """The weights after two steps, in the order of the optimizer's groups."""
    from burnish.optim import NorMuon

    optimizer = NorMuon.for_model(model, lr=LR)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [whole(parameter).clone() for parameter in parameters]
    for _ in range(STEPS):
        optimizer.zero_grad()
        model(input_ids=inputs, labels=inputs).loss.backward()
        optimizer.step()
    after = [whole(parameter) for parameter in parameters]
    for parameter, start, end in zip(parameters, before, after, strict=True):
        gradient = None if parameter.grad is None else whole(parameter.grad)
        if gradient is not None and gradient.abs().sum() > 0 and bool((start == end).all()):
            raise AssertionError("a parameter with a gradient has not moved")
    return after


def whole(tensor: Any) -> Any:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained_beside_adapters(family: str) -> float:
    """0.0, the largest change of a weight below the adapters."""
    from burnish.train.lora import with_adapters
    from burnish.train.stage import Train

    model = with_adapters(made(family), Train(lora_rank=4), None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after_steps(model, rows())
    changed = {name for name, tensor in model.state_dict().items() if not bool((tensor == before[name]).all())}
    if not changed:
        raise AssertionError("no adapter has moved")
    if others := sorted(name for name in changed if ".lora_" not in name):
        raise AssertionError(f"{others[0]} has moved")
    return 0.0


# -- wrappers ----------------------------------------------------------------------------------------------------------


class group_of_one:
    """A process group of this process alone, where it is asked for."""

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted

    def __enter__(self) -> None:
        import torch.distributed as dist

        if self.wanted:
            self.directory = TemporaryDirectory()
            store = dist.FileStore(str(Path(self.directory.name) / "store"), 1)
            dist.init_process_group("gloo", store=store, rank=0, world_size=1)

    def __exit__(self, *_: object) -> None:
        import torch.distributed as dist

        if self.wanted:
            dist.destroy_process_group()
            self.directory.cleanup()


def compiled(model: Any, backend: str = "aot_eager") -> Any:
    import torch

    return torch.compile(model, backend=backend)


def in_ddp(model: Any) -> Any:
    from torch.nn.parallel import DistributedDataParallel

    # Experts without tokens have no gradient, and DDP wants to be told that this may be.
    return DistributedDataParallel(model, find_unused_parameters=True)


def sharded(model: Any) -> Any:
    """Each decoder layer on its own, then the rest, as `burnish train` does it."""
    from torch.distributed.fsdp import fully_shard

    kinds = set(model._no_split_modules or ())
    for module in reversed([module for module in model.modules() if type(module).__name__ in kinds]):
        fully_shard(module)
    return fully_shard(model)


WRAP: dict[str, Any] = {
    "compiled": compiled,
    "inductor": lambda model: compiled(model, "inductor"),
    "DDP": in_ddp,
    "FSDP2": sharded,
}


def _one_of_two(rank: int, family: str, wrapper: str) -> list[Any]:
    """The weights after the steps of two processes, which have one row each."""
    return after_steps(WRAP[wrapper](made(family)), rows()[rank : rank + 1])


# -- the experiment ----------------------------------------------------------------------------------------------------


def wrappers_of(family: str) -> list[str]:
    more = [name for name in MORE if name != "inductor" or shutil.which("g++")] if family in FEW else []
    return [*WRAPPERS, *more]


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.keeps()
    parser.add_argument("--only", nargs="*", choices=FAMILIES, default=FAMILIES)
    arguments = parser.read()
    families = ["llama"] if arguments.smoke else arguments.only
    kept = experiment.Kept(arguments.work)

    def measure(family: str) -> dict[str, Any]:
        return {"outcomes": {wrapper: outcome(family, wrapper) for wrapper in wrappers_of(family)}}

    kept.run(lambda: families, measure, arguments.minutes)
    found = {family: kept.read(family) for family in FAMILIES if kept.has(family)}
    setting = {"equal": EQUAL, "lr": LR, "steps": STEPS}
    experiment.record(arguments.out, __doc__, {"setting": setting, "families": found}, libraries=("peft",))


# -- tables ------------------------------------------------------------------------------------------------------------


def tables(results: dict[str, Any]) -> dict[str, str]:
    """{table: markdown} for the pages of the docs."""
    found = {family: entry["outcomes"] for family, entry in results["families"].items()}
    lines = []
    for family, outcomes in found.items():
        lines.append([family, *(word(outcomes.get(wrapper)) for wrapper in (*WRAPPERS, *MORE))])
    counts = []
    for wrapper in (*WRAPPERS, *MORE):
        tried = [outcomes[wrapper] for outcomes in found.values() if wrapper in outcomes]
        good = [one["difference"] for one in tried if "difference" in one]
        counts.append([wrapper, len(tried), len(tried) - len(good), f"{max(good, default=0.0):.0e}"])
    return {
        "families": experiment.table(["family", *WRAPPERS, *MORE], lines),
        "counts": experiment.table("wrapper | families | faults | largest difference to the plain model", counts),
    }


def word(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    return "equal" if "difference" in found else found["fault"].replace("|", "/")


if __name__ == "__main__":
    main()
