"""GRPO on TRL's trainer: every private method of TRL that is replaced, here and in `burnish.align.grpo_loss`.

What is replaced, and why:

    _generate_single_turn             our sampler: finished rows leave the batch, every token keeps the log-probability
                                      that it was drawn with
    _calculate_rewards                the only place where whole groups are seen: what TRL returns there is gathered
                                      from all processes, a reward by itself sees its own process's rows
    _generate_and_score_completions   the old log-probabilities are the sampler's, not the trainer's own repeated
    _prepare_inputs                   rows of a draw are cut into forward passes by their length, and dealt to processes
    _compute_loss                     rows without advantage are not forwarded, rows go in order of length, losses of
                                      `burnish.align.maths`, shares of the step's own denominator
    _save_checkpoint,
    _load_optimizer_and_scheduler     state besides the optimizer's, and answers that were drawn and not yet learned
                                      from

Their signatures are held by `tests/align/test_grpo.py`: another version of TRL fails there and not in a run.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from burnish.align.drawing import AnswersAhead, Drawer, Drawn, DrawOrder, InTurn, SingleTurn, updates_of
from burnish.align.drawing_process import OwnProcess
from burnish.align.grpo_loss import StepLossTrainer
from burnish.align.maths.balance import cut
from burnish.align.passes import Batch, flat, parts_of
from burnish.align.read_later import Judged, ReadLater
from burnish.align.refill import others
from burnish.align.replay import KeptGroup, ReplayQueue, Row, batch_of, groups_of
from burnish.core.errors import DataError, SettingsError
from burnish.generate import Sample
from burnish.train.watch import Watch

STATE = "length_control.json"
DRAWN, REPLAY, AHEAD = "drawn-{}.safetensors", "replay-{}.safetensors", "ahead-{}.json"
"""Files of a checkpoint: controller and counters; of each process, answers that are being learned from, old ones that
may be learned from again, and those that were drawn for later updates."""


class SampledGRPOTrainer(StepLossTrainer):
    """GRPO whose answers come from `burnish.generate`, with the log-probabilities that they were drawn with."""

    drawn_tokens: int = 0
    answers_drawn_again: int = 0
    ages: Counter[int]  # {updates since the weights that drew were there: answers learned from}
    round: int = 0  # of filling a batch; 0 draws what the data set's order asks
    read_later: ReadLater | None = None
    watch: Watch | None = None
    queue: ReplayQueue | None = None
    judged: Judged | None = None
    ahead: AnswersAhead | None = None
    version: int = 0  # of the weights that drew what was drawn last, in updates
    kind_of_answer: type[Drawn] = Sample

    def __init__(self, *given: Any, **named: Any) -> None:
        self.ages = Counter()
        super().__init__(*given, **named)

    # -- drawing -------------------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple[list[list[int]], list[list[float]]]:
        if images is not None or multimodal_fields:
            raise SettingsError("prompts with images are not drawn by this sampler", where="train_dataset")
        prompts, several = together([list(one) for one in prompt_ids], num_generations)
        drawn = self.drawn(prompts, several)
        self.drawn_tokens += self.over_all(sum(len(one.tokens) for one in drawn))
        return [one.tokens for one in drawn], [one.logprobs for one in drawn]

    @property
    def drawer(self) -> Drawer:
        """How answers are drawn."""
        sampling = {
            "temperature": self.temperature,
            "top_k": self.args.top_k if self.args.top_k > 0 else 0,
            "top_p": self.args.top_p,
            "stop_tokens": self.eos_token_ids,
            "batch_size": self.args.sampler_rows,
        }
        return SingleTurn(cast(Any, self._tokenizer), self.longest, sampling)

    def drawn(self, prompts: list[list[int]], several: int) -> list[Any]:
        """Answers to the prompts of this process, drawn now or ahead."""
        with self.timed("drawing"):
            if self.mode == "train" and self.args.draws_ahead:
                return self._drawn_ahead(prompts)
            seeds = self.seeds(len(prompts))
            with self.inferring() as module:
                return list(self.drawer.draw(module, prompts, seeds, several))

    def seeds(self, prompts: int, update: int | None = None) -> list[int]:
        """A stream of each prompt's own: a run that goes on from a checkpoint draws what it would have drawn.

        Args:
            prompts: how many this process has.
            update: that is drawn for, as many before it; the present one if not given.
        """
        step = self._of_this_draw if update is None else f"{self.args.seed} {update} 0"
        first, again = self.accelerator.process_index * prompts, f" round {self.round}" if self.round else ""
        return [_number(f"{step} {self.mode} {first + place}{again}") for place in range(prompts)]

    @property
    def _of_this_draw(self) -> str:
        """What tells one draw of a run from another."""
        return f"{self.args.seed} {self.state.global_step} {self._step % self.args.gradient_accumulation_steps}"

    @contextlib.contextmanager
    def inferring(self) -> Iterator[Any]:
        module = self.accelerator.unwrap_model(self.model)
        training = module.training
        module.eval()
        try:
            yield module
        finally:
            module.train(training)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._metrics[self.mode][f"seconds/{what}"].append(time.perf_counter() - began)

    # -- drawing ahead -------------------------------------------------------------------------------------------------

    def _drawn_ahead(self, prompts: list[list[int]]) -> list[Any]:
        """The answers of this update; those of later ones are ordered with the weights that are here now."""
        update = self.state.global_step
        if self.ahead is None:
            self.ahead = self._new_ahead()
        module = self.accelerator.unwrap_model(self.model)
        self.ahead.tell(update, self._orders(update), module.named_parameters())
        answers = self.ahead.take(update, prompts)
        self.version = answers.version
        self._metrics["train"]["seconds/drawn"].append(answers.seconds)
        return answers.drawn

    def _new_ahead(self) -> AnswersAhead:
        module, places = self.accelerator.unwrap_model(self.model), self.args.staleness + 1
        if self.args.asynchronous:
            return AnswersAhead(lambda orders: OwnProcess(module, self.drawer, orders, places), self.args.heartbeat)
        return AnswersAhead(lambda orders: InTurn(self.drawer, orders, self.inferring), self.args.heartbeat)

    def _orders(self, version: int) -> list[DrawOrder]:
        """What these weights draw: answers to the problems of an update to come; the first ones, of several."""
        every, several = self.args.updates_of_a_draw, int(self.num_generations or 1)
        found = []
        for update in updates_of(version, self.args.staleness, every, self.state.max_steps):
            prompts = self.read_prompts(self._problems_of(update // every))
            found.append(DrawOrder(update, version, prompts, self.seeds(len(prompts), update), several))
        return found

    def _problems_of(self, draw: int) -> list[Any]:
        """Prompts of this process, in the order that TRL's sampler gives them in where it does not shuffle."""
        problems: Any = self.train_dataset
        if not hasattr(problems, "__len__"):
            raise SettingsError("is drawn ahead to problems of a data set, which must have a length", where="staleness")
        together = int(self.args.generation_batch_size or 1) // int(self.num_generations or 1)
        share = together // self.accelerator.num_processes
        first = draw % (len(problems) // together) * together + self.accelerator.process_index * share
        return [problems[place]["prompt"] for place in range(first, first + share)]

    def read_prompts(self, prompts: list[Any]) -> list[list[int]]:
        """Token ids of prompts, as they are drawn from."""
        return [list(one) for one in self._tokenize_prompts(prompts)[0]]

    def train(self, *given: Any, **named: Any) -> Any:
        """As TRL's; whatever ends it, no process is left."""
        try:
            return super().train(*given, **named)
        finally:
            if self.ahead is not None:
                self.ahead.stop()
            self.ahead = None

    # -- rewards -------------------------------------------------------------------------------------------------------

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Sequence[Sequence[int]]
    ) -> Tensor:
        with self.timed("judging"):
            rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        unscorable = float(rewards.isnan().all(dim=1).float().mean())
        self._metrics[self.mode]["unscorable"].append(unscorable)
        if unscorable > self.args.most_unscorable and not self.round:  # a share of few answers says little
            raise DataError(
                f"{unscorable:.0%} of the answers of a step have no reward (None or NaN), above "
                f"{self.args.most_unscorable:.0%}",
                where=", ".join(self.reward_func_names),
                fix="mend the reward, or raise most_unscorable",
            )
        lengths = torch.tensor([float(len(ids)) for ids in completion_ids_list], device=rewards.device)
        several = int((self.num_generations if self.mode == "train" else self.num_generations_eval) or 1)
        lengths = cast(Tensor, gather(lengths)).view(-1, several)
        shaped = self.shape_rewards(rewards.view(-1, several, rewards.shape[1]), lengths).reshape(rewards.shape)
        here = slice(first := self.accelerator.process_index * len(prompts), first + len(prompts))
        self.judged = Judged([list(ids) for ids in completion_ids_list], rewards[here], shaped[here])
        return shaped

    def shape_rewards(self, rewards: Tensor, lengths: Tensor) -> Tensor:
        """What subclasses change: rewards (groups, rollouts, functions) of all processes, tokens (groups, rollouts)."""
        del lengths
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> Batch:
        output = self._answered(inputs)
        if self.mode == "train":
            if self.read_later is not None and self.accelerator.is_main_process:
                assert self.judged is not None, "what was drawn has been judged"
                step, several = self.state.global_step, int(self.num_generations or 1)
                self.read_later.note(step, inputs, output, self.judged, several)
            if self.args.refill or self.args.replay:
                output = self._filled(inputs, output)
        # for what draws from the global generator next, such as dropout: after an interruption its state at an epoch's
        # start would be another
        torch.manual_seed(_number(f"rows {self.args.seed} {self.state.global_step} {self.accelerator.process_index}"))
        return output

    def _answered(self, inputs: Any) -> Batch:
        """What TRL makes of answers to these rows of the data set, with the sampler's log-probabilities."""
        output = super()._generate_and_score_completions(inputs)
        output["old_per_token_logps"] = output.pop("sampling_per_token_logps")
        output["advantages"] = self.credited(output)
        if not self.args.draws_ahead:
            self.version = self.state.global_step
        output["version"] = torch.full((len(output["prompt_ids"]),), self.version, device=self.accelerator.device)
        return output

    def credited(self, output: Batch) -> Tensor:
        """What subclasses change: advantages of this process's rows, or (rows, tokens) where turns differ."""
        return output["advantages"]

    # -- groups that have nothing to teach -----------------------------------------------------------------------------

    def _filled(self, inputs: Any, output: Batch) -> Batch:
        """The batch with other groups in the places of those without variance: of other problems, then older ones."""
        groups = groups_of(output, int(self.num_generations or 1), self.version)
        if self.args.refill:
            groups = self._refilled(groups, inputs)
        if self.args.replay:
            groups = self._replayed(groups)
        self._tell("unmoved_groups", [not one.pull for one in groups])
        batch: Batch = batch_of(groups, cast(Any, self._tokenizer).pad_token_id)
        mask = batch["completion_mask"] * batch.get("tool_mask", 1)
        batch["num_items_in_batch"] = cast(Tensor, gather(mask.sum()[None])).sum()
        return batch

    def _refilled(self, groups: list[KeptGroup], inputs: Any) -> list[KeptGroup]:
        """Groups of other problems in the places of those without variance, drawn until there are none or at a bound.

        All processes draw for all places, so that what is drawn does not depend on how many processes there are.
        """
        several, count = int(self.num_generations or 1), len(groups)
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        found = self._of_all(groups)
        problems: Any = self.train_dataset
        if not hasattr(problems, "__len__"):
            raise SettingsError("asks other problems of a data set, which must have a length", where="refill")
        asked = cast(list[str], gather_object([str(row["prompt"]) for row in inputs]))
        rows = others(problems, asked, _number(f"refill {self._of_this_draw}"))
        places = [place for place, one in enumerate(found) if not one.pull]
        empty, drawn, differ = len(places), len(found), len(found) - len(places)
        for number in range(1, self.args.refill + 1):
            if not places:
                break
            wanted = [next(rows) for _ in places]
            each = -(-len(wanted) // processes)
            # as many for each process: the first ones again, which are not used
            spread = itertools.islice(itertools.cycle(wanted), index * each, (index + 1) * each)
            mine = [dict(row) for row in spread for _ in range(several)]
            with self._aside(number):
                again = self._answered(mine)
            new = self._of_all(groups_of(again, several, self.state.global_step))[: len(places)]
            drawn, differ = drawn + len(new), differ + sum(one.pull > 0 for one in new)
            for place, one in zip(places, new, strict=True):
                if one.pull:
                    found[place] = one
            places = [place for place in places if not found[place].pull]
        self.answers_drawn_again += (drawn - len(found)) * several
        self._metrics[self.mode]["refilled"].append((empty - len(places)) / len(found))
        self._metrics[self.mode]["accepted"].append(differ / drawn)
        return found[index * count : (index + 1) * count]

    @contextlib.contextmanager
    def _aside(self, number: int) -> Iterator[None]:
        """A round of filling: what is told of rewards and lengths stays that of the first answers; its time counts."""
        told, self._metrics[self.mode] = self._metrics[self.mode], defaultdict(list)
        self.round = number
        try:
            yield
        finally:
            aside, self._metrics[self.mode], self.round = self._metrics[self.mode], told, 0
            for name, values in aside.items():
                if name.startswith("seconds/"):
                    told[name][-1] += sum(values)

    def _of_all(self, groups: list[KeptGroup]) -> list[KeptGroup]:
        """The groups of all processes, in their order."""
        if self.accelerator.num_processes == 1:
            return list(groups)
        everywhere = cast(list[KeptGroup], gather_object([one.to("cpu") for one in groups]))
        return [one.to(self.accelerator.device) for one in everywhere]

    def _replay_queue(self) -> ReplayQueue:
        """Made when it is first asked for."""
        if self.queue is None:
            self.queue = ReplayQueue(self.args.replay, self.args.max_staleness, self.args.reuse)
        return self.queue

    def _replayed(self, groups: list[KeptGroup]) -> list[KeptGroup]:
        """Older groups in the places of those without variance."""
        chosen = self._replay_queue().exchanged(groups, self.state.global_step)
        self._tell("replayed", [one is not fresh for one, fresh in zip(chosen, groups, strict=True)])
        return chosen

    def _tell_staleness(self) -> None:
        """Of all answers of an update, how many updates ago the weights were there that drew them."""
        passes, parts = self.args.steps_per_generation or 1, cast(list[Batch], self._buffered_inputs)
        first = self._step % passes
        own = parts[first : first + self.args.gradient_accumulation_steps]
        ages = [self.state.global_step - int(version) for part in own for version in part["version"]]
        found = cast(list[int], gather_object(ages))
        self.ages.update(found)
        self._metrics[self.mode]["staleness/mean"].append(sum(found) / len(found))
        self._metrics[self.mode]["staleness/max"].append(float(max(found)))

    def _tell(self, name: str, numbers: Sequence[float]) -> Tensor:
        """Files the mean of numbers of all processes, and returns them."""
        found = torch.tensor([list(numbers)], device=self.accelerator.device, dtype=torch.float64)
        everywhere = cast(Tensor, gather(found))
        self._metrics[self.mode][name].append(float(everywhere.mean()))
        return everywhere

    # -- forward passes ------------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        if self.mode == "eval":
            return self._generate_and_score_completions(generation_batch)
        passes = self.args.steps_per_generation or 1
        if self._step % (passes * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._cut(self._generate_and_score_completions(generation_batch))
        if self._step % self.args.gradient_accumulation_steps == 0 and (self.args.draws_ahead or self.args.replay):
            self._tell_staleness()
        return cast(list[Batch], self._buffered_inputs)[self._step % passes]

    def _cut(self, output: Batch) -> list[Batch]:
        """The forward passes of this process, of rows that any process may have drawn.

        Where a draw is for several updates, each takes as many rows of it by chance.
        """
        passes = self.args.steps_per_generation or 1
        each = math.gcd(passes, self.args.gradient_accumulation_steps)  # cut together, as no update ends within
        index, processes = self.accelerator.process_index, self.accelerator.num_processes
        if passes * processes == 1:
            return [output]
        rows = self._of_all(groups_of(output, self._kept_together(len(output["prompt_ids"]), each), self.version))
        generator = torch.Generator().manual_seed(_number(f"updates {self._of_this_draw}"))
        order, share = torch.randperm(len(rows), generator=generator).tolist(), len(rows) * each // passes
        found = []
        for start in range(0, len(rows), share):
            own = [rows[place] for place in order[start : start + share]]
            for piece in cut([self._length(one) for one in own], processes, each, self.args.packing)[index]:
                batch: Batch = batch_of([own[place] for place in piece], cast(Any, self._tokenizer).pad_token_id)
                found.append(batch | {"num_items_in_batch": output["num_items_in_batch"]})
        return found

    def _kept_together(self, count: int, each: int) -> int:
        """Rows that go to one pass: those of a problem where what they begin with is shared, and there are enough.

        Args:
            count: rows of this process.
            each: passes that are cut together.
        """
        several, passes = int(self.num_generations or 1), self.args.steps_per_generation or 1
        groups = count // several
        enough = groups * each % passes == 0 and groups >= passes
        return several if self.args.share_prefixes and enough else 1

    def _length(self, group: KeptGroup) -> int:
        """Tokens that rows are forwarded with, of one prompt; 0 where none moves anything and so none is."""
        answers = [len(row["completion_ids"]) for row in group.rows if self._moves(row)]
        return len(group.rows[0]["prompt_ids"]) + sum(answers) if answers else 0

    def _moves(self, row: Row) -> bool:
        mask = row["completion_mask"] * row.get("tool_mask", 1)
        return bool((row["advantages"] * mask != 0).any() if self._skips else (mask > 0).any())

    # -- state ---------------------------------------------------------------------------------------------------------

    def control_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides TRL's own, as JSON can hold it."""
        kept = [] if self.read_later is None else self.read_later.kept
        rows = [self.forwarded_rows, self.left_out_rows, self.answers_drawn_again]
        found = {"drawn_tokens": self.drawn_tokens, "rows": rows, "read_later": kept, "forward_passes": self._step}
        found["ages"] = sorted(self.ages.items())
        return found | ({} if self.watch is None else {"watch": self.watch.state()})

    def load_control_state(self, state: dict[str, Any]) -> None:
        self.drawn_tokens, self._step = state["drawn_tokens"], state["forward_passes"]
        self.forwarded_rows, self.left_out_rows, self.answers_drawn_again = state["rows"]
        self.ages = Counter(dict(state["ages"]))
        if self.watch is not None:
            self.watch.go_on(state["watch"])
        if self.read_later is not None:
            self.read_later.kept = state["read_later"]

    @property
    def _is_within_what_was_drawn(self) -> bool:
        """Whether the next forward pass is on answers that are there."""
        return self._step % ((self.args.steps_per_generation or 1) * self.num_iterations) != 0

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        # before TRL's own files, whose last one is what makes a checkpoint whole
        place = Path(self._get_output_dir(trial=trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        place.mkdir(parents=True, exist_ok=True)
        if self._is_within_what_was_drawn:
            save_file(flat(self._buffered_inputs or []), place / DRAWN.format(self.accelerator.process_index))
        if self.queue is not None and self.queue.groups:
            self.queue.save(place / REPLAY.format(self.accelerator.process_index))
        if self.ahead is not None:
            (place / AHEAD.format(self.accelerator.process_index)).write_text(json.dumps(self.ahead.state()))
        if self.args.should_save:
            (place / STATE).write_text(json.dumps(self.control_state()))
        self.accelerator.wait_for_everyone()
        super()._save_checkpoint(model, trial)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None:
            return
        self.load_control_state(json.loads((Path(checkpoint) / STATE).read_text()))
        if self._is_within_what_was_drawn:
            file = Path(checkpoint) / DRAWN.format(self.accelerator.process_index)
            self._buffered_inputs = parts_of(load_file(file, device=str(self.accelerator.device)))
        replay = Path(checkpoint) / REPLAY.format(self.accelerator.process_index)
        if self.args.replay and replay.is_file():
            self._replay_queue().load(replay, str(self.accelerator.device))
        ahead = Path(checkpoint) / AHEAD.format(self.accelerator.process_index)
        if self.args.draws_ahead and (self.args.staleness or ahead.is_file()):
            # without staleness one that drew when answers were needed has no such file, and nothing to go on with
            self.ahead = self._new_ahead()
            self.ahead.go_on(json.loads(ahead.read_text()), self.kind_of_answer)


def together(prompts: list[Any], several: int) -> tuple[list[Any], int]:
    """Each group's prompt once and how many answers it has; where groups are cut by a process's slice, every row."""
    groups = [prompts[start : start + several] for start in range(0, len(prompts), several)]
    whole = all(len(group) == several and all(one == group[0] for one in group) for group in groups)
    return ([group[0] for group in groups], several) if whole else (prompts, 1)


def _number(name: str) -> int:
    """A seed of a name."""
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])
