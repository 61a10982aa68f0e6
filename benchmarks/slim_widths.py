"""What would a width for each expert gain, which stock checkpoint comes nearest to it, and what does a better refit?

    python benchmarks/slim_widths.py --work runs/slim-router --minutes 8      # again, until all is done

Half of the parameters of all experts, cut by `energy` on 8,192 tokens, nothing trained. Priced on masks, because no
stock loader reads it: in every layer the neurons with the highest scores, whichever expert they are in ("a width for
each expert"). Stock forms: one width for all; fewer experts that are wider; the best half of all pieces, where an
expert is 2, 4 or 8 of them, of which a token is sent to some (`slim --method split`); and pairs of experts with similar
router rows as one expert of both's neurons ("pairs"). Teachers, families, texts and windows are those of
`slim_router.py`, in the same directory.

"Refit" alone sees each expert alone and the layers in front of it as they were; "behind" goes layer by layer behind
layers that have been cut, and fits all experts of a layer together. Its ridge was searched on the tuning windows of the
first seed of the first family. Pieces, and pairs, are refitted behind.

"gap closed" is the share of (one width with the refit of `slim` - teacher) that a way wins back.
"""

from __future__ import annotations

import copy
from typing import Any

import byte_windows
import experiment
import slim_router

import slim

WIDTH = slim.WIDTHS["half"]
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1)
FEWER = {7: 72, 6: 80, 5: 96}
SPLITS = ((2, 2), (2, 3), (4, 4), (4, 5), (4, 6), (8, 8), (8, 10))
"""Pieces of an expert, and pieces that a token is sent to: up to half as much again as the share that is kept."""
ONE, BEHIND = "one width", "one width, refit behind"
OWN = ("a width for each expert", "a width for each expert, refit behind")
STOCK = (
    *(f"{count} experts of {width}" for count, width in FEWER.items()),
    *(f"split in {pieces}, {chosen} for a token" for pieces, chosen in SPLITS),
    "pairs",
)
WAYS = (ONE, BEHIND, *OWN, *STOCK)


class Family(slim_router.Family):
    """What is measured of one family, by name: "seed, way", and with a ridge in the search."""

    def names_of(self, seed: int) -> list[str]:
        tried = [searched(ridge) for ridge in RIDGES] if self.first is None and seed == self.seeds[0] else []
        return [f"{seed}, teacher", *tried, *(f"{seed}, {way}" for way in WAYS)]

    def measure(self, name: str) -> dict[str, Any]:
        number, what = name.split(", ", 1)
        seed = int(number)
        if what == "teacher":
            return self.losses(self.teacher(seed))
        if "; ridge " in what:
            return self.losses(self.cut(seed, BEHIND, float(what.rpartition(" ")[2])))
        ridge = (self.first or self).best_ridge()
        return self.losses(self.cut(seed, what, ridge)) | {"ridge": ridge}

    def best_ridge(self) -> float:
        return min(RIDGES, key=lambda ridge: self.tuning_loss(searched(ridge)))

    def cut(self, seed: int, way: str, ridge: float) -> Any:
        """The model of a way."""
        if way == ONE:
            return self.slim(seed, width=WIDTH, score="energy", refit="alone")
        if way.endswith(tuple(f"experts of {width}" for width in FEWER.values())):
            count, width = way.split(" experts of ")
            return self.slim(seed, width=int(width), num_experts=int(count), score="energy", refit="alone")
        teacher, tokens = self.teacher(seed), self.tokens(seed)
        if way.startswith("split"):
            pieces, chosen = map(int, way.removeprefix("split in ").removesuffix(" for a token").split(", "))
            sizes = {"num_experts": len(self.scores(seed)[0]) * pieces // 2, "num_experts_per_tok": chosen}
            return self.slim(seed, method="split", pieces=pieces, score="energy", **sizes)
        if way == BEHIND:
            student = copy.deepcopy(self.slim(seed, width=WIDTH, score="energy"))
            return behind(teacher, student, tokens, ridge)
        if way in OWN:
            student, kept = masked(teacher, self.scores(seed), tokens, refitted=way == OWN[0])
            return behind(teacher, student, tokens, ridge, kept) if way == OWN[1] else student
        return behind(teacher, in_pairs(teacher, self.scores(seed)), tokens, ridge)

    def tokens(self, seed: int) -> Any:
        import torch

        from burnish.data import calibration

        return calibration(
            self.teacher(seed).tokenizer,
            [self.cut_text],
            length=byte_windows.LENGTH,
            max_tokens=1024 if self.smoke else slim.CALIBRATION,
            generator=torch.Generator().manual_seed(seed),
        )

    def scores(self, seed: int) -> dict[int, Any]:
        """`energy` of every neuron of the teacher, {layer: [experts, width]}."""
        import torch

        from burnish.core.progress import Progress
        from burnish.slim.collect import collect, down_views
        from burnish.slim.maths.scores import SCORES

        module, score = self.teacher(seed).module.eval(), SCORES["energy"]
        quiet, generator = Progress(enabled=False), torch.Generator().manual_seed(seed)
        sums = collect(module, self.tokens(seed), score, generator=generator, progress=quiet)
        found: dict[int, list[Any]] = {}
        for view in down_views(module, "experts"):
            norms = view.tensor.double().norm(dim=0)
            found.setdefault(view.layer, []).append(score.finish(sums.neurons[view.layer][view.expert], norms))
        return {layer: torch.stack(scores) for layer, scores in found.items()}


def searched(ridge: float) -> str:
    return f"{byte_windows.SEEDS[0]}, {BEHIND}; ridge {ridge:g}"


# -- ways of cutting ---------------------------------------------------------------------------------------------------


def masked(teacher: Any, scores: dict[int, Any], tokens: Any, *, refitted: bool) -> tuple[Any, dict[int, list[Any]]]:
    """The teacher without the neurons that score least in their layer, and which neurons it keeps."""
    import torch

    from burnish.core.progress import Progress
    from burnish.slim.collect import down_views
    from burnish.slim.price import own_widths
    from burnish.slim.refit import refit
    from burnish.slim.surgery import Kept

    kept, student = own_widths(scores, WIDTH), copy.deepcopy(teacher)
    new: dict[Any, Any] = {}
    if refitted:
        new = dict(refit(teacher.module, tokens, Kept(kept), Progress(enabled=False)))  # pyright: ignore[reportArgumentType]
    for view in down_views(student.module, "experts"):
        neurons, down = kept[view.layer][view.expert], torch.zeros_like(view.tensor)
        down[:, neurons] = new.get((view.layer, view.expert), view.tensor[:, neurons])
        view.write_(down)
    return student, kept


def in_pairs(teacher: Any, scores: dict[int, Any]) -> Any:
    """Pairs of experts whose router rows are most alike, each one's better half of the neurons beside the other's."""
    import torch

    from burnish.arch import matrices

    groups: dict[int, list[tuple[list[int], Any]]] = {}
    for view in matrices(teacher.module):
        if view.role == "router":
            like = torch.nn.functional.normalize(view.tensor, dim=1)
            like, every = (like @ like.T).fill_diagonal_(-2), scores[view.layer].shape[1]
            groups[view.layer] = []
            for _ in range(len(like) // 2):
                one, other = divmod(int(like.argmax()), len(like))
                like[[one, other]] = like[:, [one, other]] = -2
                halves = [scores[view.layer][e].topk(every // 2).indices.sort().values for e in (one, other)]
                groups[view.layer].append(([one, other], torch.cat([halves[0], halves[1] + every])))
    return regrouped(teacher, groups)


def regrouped(teacher: Any, groups: dict[int, list[tuple[list[int], Any]]]) -> Any:
    """A stock model of other experts.

    Args:
        teacher: whose weights are taken.
        groups: of every layer the new experts: old ones, and which of their neurons, numbered one after the other.
    """
    import torch

    from burnish.arch import describe, matrices, vectors
    from burnish.core.checkpoint import unfilled

    first, facts = next(iter(groups.values())), describe(teacher.module)
    config = copy.deepcopy(teacher.module.config)
    setattr(config, facts.key("num_experts"), len(first))
    setattr(config, facts.key("moe_intermediate_size"), len(first[0][1]))
    module = unfilled(type(teacher.module), config, teacher.module)
    module.set_experts_implementation("eager")
    old = {(view.layer, view.role, view.expert): view.tensor for view in matrices(teacher.module)}
    for view in matrices(module):
        if view.expert is not None:
            members, neurons = groups[view.layer][view.expert]
            down = view.role == "down"
            joined = torch.cat([old[view.layer, view.role, member] for member in members], dim=1 if down else 0)
            view.write_(joined[:, neurons] if down else joined[neurons])
        elif view.role == "router":
            rows = [old[view.layer, "router", None][members].mean(0) for members, _ in groups[view.layer]]
            view.write_(torch.stack(rows))
        else:
            view.write_(old[view.layer, view.role, None])
    given = {vector.parameter: vector.tensor for vector in vectors(teacher.module)}
    for vector in vectors(module):
        vector.tensor.copy_(given[vector.parameter])
    return teacher.derive(module=module)


def behind(teacher: Any, student: Any, tokens: Any, ridge: float, kept: dict[int, list[Any]] | None = None) -> Any:
    """The student with down projections of its experts refitted behind cut layers; of `kept` neurons, or of all."""
    from burnish.core.progress import Progress
    from burnish.slim.behind import refit_behind

    modules = teacher.module.eval(), student.module.eval()
    for _ in refit_behind(*modules, tokens, Progress(enabled=False), ridge=ridge, columns=kept):
        pass
    return student


# -- the record --------------------------------------------------------------------------------------------------------


def summary(benches: dict[str, Any]) -> dict[str, Any]:
    """Of the seeds that have been measured, family by family."""
    first = next(iter(benches.values()))
    return {
        "settings": {"calibration_tokens": slim.CALIBRATION, "ridges": RIDGES, "width": WIDTH},
        "slices": byte_windows.slices(first.teacher(first.seeds[0]).tokenizer, first.test_text),
        "search": {f"{ridge:g}": first.tuning_loss(searched(ridge)) for ridge in RIDGES},
        "summary": {name: found for name, bench in benches.items() if (found := of_family(bench))},
    }


def of_family(bench: Family) -> dict[str, Any]:
    seeds = bench.measured_seeds()
    if not seeds:
        return {}
    losses = {way: bench.reported([f"{seed}, {way}" for seed in seeds]) for way in ("teacher", *WAYS)}
    rows: dict[str, Any] = {}
    for way in WAYS:
        rows[way] = {"loss": float(losses[way].mean()), "by_seed": losses[way].mean(1).tolist()}
        rows[way]["parameters"] = bench.read(f"{seeds[0]}, {way}")["parameters"]
        if way != ONE:
            rows[way]["against"] = {"name": ONE} | byte_windows.against(losses[way], losses[ONE])
            rows[way]["gap_closed"] = slim_router.closed(losses[ONE], losses[way], losses["teacher"])
    return {"teacher": float(losses["teacher"].mean()), "seeds": seeds, "ways": rows}


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown tables for the documentation."""
    found, lines = results["summary"], []
    for family, rows in found.items():
        for way, row in sorted(rows["ways"].items(), key=lambda one: one[1]["loss"]):
            against = experiment.cell(row["against"], "+.3f") if "against" in row else ""
            lines.append([family, way, f"{row['loss']:.3f}", against, slim_router.share(row.get("gap_closed"))])
    return {
        "widths": experiment.table([*slim_router.heading(found), "loss:", "against one width:", "gap closed:"], lines)
    }


if __name__ == "__main__":
    slim_router.main(Family, __file__, __doc__, summary)
