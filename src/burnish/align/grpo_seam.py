"""GRPO on TRL's trainer: every private method of TRL that is replaced stands here, and nowhere else.

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
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from accelerate.utils import gather, gather_object
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOConfig, GRPOTrainer

from burnish.align.maths import policy_loss
from burnish.align.maths.balance import cut
from burnish.align.maths.reduction import Normaliser, share
from burnish.align.read_later import Judged, ReadLater
from burnish.align.refill import others
from burnish.align.replay import KeptGroup, ReplayQueue, batch_of, groups_of
from burnish.core.errors import DataError, NumericalError, SettingsError
from burnish.generate import generate
from burnish.train.watch import Watch

NORMALISERS: dict[str, Normaliser] = {"dapo": "token", "dr_grpo": "constant"}
"""TRL's names of losses that differ in their denominator; its others average over micro-batches."""
STATE = "length_control.json"
DRAWN, REPLAY = "drawn-{}.safetensors", "replay-{}.safetensors"
"""Files of a checkpoint: controller and counters; of each process, answers that wait to be learned from, and old ones
that may be learned from again."""

Batch = dict[str, Any]


@dataclass
class SampledGRPOConfig(GRPOConfig):
    """GRPOConfig for `SampledGRPOTrainer`, with defaults under which its numbers can be checked."""

    loss_type: str = field(default="dapo", metadata={"help": "Denominator: dapo (tokens of the step) or dr_grpo."})
    scale_rewards: str = field(default="none", metadata={"help": "Divide by the group's deviation, or not."})
    mask_truncated_completions: bool = field(default=True, metadata={"help": "No loss on answers that were cut off."})
    policy_loss: Literal["clip", "dual", "cispo", "importance", "gspo"] = field(
        default="clip", metadata={"help": "Loss of a token; see burnish.align.maths.policy_loss."}
    )
    dual_clip: float = field(default=3.0, metadata={"help": "dual: what a bad token costs at most, in |A|."})
    sampler_rows: int = field(default=256, metadata={"help": "Answers that are drawn at a time."})
    most_unscorable: float = field(
        default=0.1, metadata={"help": "Share of answers without a reward that stops a run."}
    )
    replay: int = field(
        default=0, metadata={"help": "Groups kept to be learned from again where fresh ones have no variance."}
    )
    max_staleness: int = field(default=4, metadata={"help": "replay: updates since a group was drawn, at most."})
    reuse: int = field(default=1, metadata={"help": "replay: how often a group may be learned from again."})
    refill: int = field(
        default=0, metadata={"help": "Times that the place of a group without variance is given to another problem."}
    )
    skip_unmoved: bool = field(default=True, metadata={"help": "Do not forward rows whose advantage is zero."})

    def __post_init__(self) -> None:
        if self.loss_type not in NORMALISERS:
            raise SettingsError(
                f"is {self.loss_type!r}, which depends on how a step is cut into micro-batches or is not known here",
                where="loss_type",
                fix="use dapo (tokens of the whole step) or dr_grpo (a constant)",
            )
        if self.use_vllm:
            raise SettingsError("needs an engine that this trainer does not speak to", where="use_vllm")
        if not 0 <= self.most_unscorable < 1:
            raise SettingsError(f"is {self.most_unscorable}, but a share below 1 is needed", where="most_unscorable")
        if self.refill < 0:
            raise SettingsError(f"is {self.refill}, but 0 is the least", where="refill")
        if (self.num_generations or 0) < 2:
            raise SettingsError(
                f"is {self.num_generations}, and an answer alone has nothing to be better than",
                where="num_generations",
                fix="use 2 or more; 8 is usual",
            )
        super().__post_init__()
        rows, several = self.per_device_train_batch_size * (self.steps_per_generation or 1), self.num_generations or 1
        if rows % several:
            raise SettingsError(
                f"is {several}, which does not divide the {rows} answers that each of {self.world_size} processes "
                "draws: a group would be split",
                where="num_generations",
            )


class SampledGRPOTrainer(GRPOTrainer):
    """GRPO whose answers come from `burnish.generate`, with the log-probabilities that they were drawn with."""

    args: SampledGRPOConfig
    drawn_tokens: int = 0
    forwarded_rows: int = 0
    left_out_rows: int = 0
    answers_drawn_again: int = 0
    round: int = 0  # of filling a batch; 0 draws what the data set's order asks
    read_later: ReadLater | None = None
    watch: Watch | None = None
    queue: ReplayQueue | None = None
    judged: Judged | None = None
    _noted: tuple[Tensor, ...] = ()

    @property
    def mode(self) -> Literal["train", "eval"]:
        """What TRL's metrics are filed under."""
        policy: Any = self.model
        return "train" if policy.training else "eval"

    @property
    def longest(self) -> int:
        """Tokens that an answer may have."""
        return int(self.args.max_completion_length or 0)

    # -- drawing -------------------------------------------------------------------------------------------------------

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, has_tool_images: bool = False
    ) -> tuple[list[list[int]], list[list[float]]]:
        if images is not None or multimodal_fields:
            raise SettingsError("prompts with images are not drawn by this sampler", where="train_dataset")
        prompts, several = together([list(one) for one in prompt_ids], num_generations)
        seeds = self.seeds(len(prompts))
        with self.timed("drawing"), self.inferring() as module:
            drawn = generate(
                module,
                self._tokenizer,
                prompts,
                n=several,
                max_new_tokens=self.longest,
                temperature=self.temperature,
                top_k=self.args.top_k if self.args.top_k > 0 else 0,
                top_p=self.args.top_p,
                stop_tokens=self.eos_token_ids,
                seed=seeds,
                batch_size=self.args.sampler_rows,
            )
        self.drawn_tokens += self.over_all(sum(len(one.tokens) for one in drawn))
        return [one.tokens for one in drawn], [one.logprobs for one in drawn]

    def seeds(self, prompts: int) -> list[int]:
        """A stream of each prompt's own: a run that goes on from a checkpoint draws what it would have drawn.

        Args:
            prompts: how many this process has.
        """
        step = self._of_this_draw
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

    def over_all(self, number: int) -> int:
        """A number of this process, summed over all of them."""
        return int(cast(Tensor, gather(torch.tensor([number], device=self.accelerator.device))).sum())

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
        return output

    def credited(self, output: Batch) -> Tensor:
        """What subclasses change: advantages of this process's rows, or (rows, tokens) where turns differ."""
        return output["advantages"]

    # -- groups that have nothing to teach -----------------------------------------------------------------------------

    def _filled(self, inputs: Any, output: Batch) -> Batch:
        """The batch with other groups in the places of those without variance: of other problems, then older ones."""
        groups = groups_of(output, int(self.num_generations or 1), self.state.global_step)
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
        step = self.state.global_step
        groups = self._replay_queue().exchanged(groups, step)
        ages = self._tell("staleness/mean", [step - one.step for one in groups])
        self._metrics[self.mode]["staleness/max"].append(float(ages.max()))
        self._metrics[self.mode]["replayed"].append(float((ages > 0).double().mean()))
        return groups

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
        rows = self._of_all(groups_of(output, 1, self.state.global_step))
        generator = torch.Generator().manual_seed(_number(f"updates {self._of_this_draw}"))
        order, share = torch.randperm(len(rows), generator=generator).tolist(), len(rows) * each // passes
        found = []
        for start in range(0, len(rows), share):
            own = [rows[place] for place in order[start : start + share]]
            for piece in cut([self._length(one) for one in own], processes, each)[index]:
                batch: Batch = batch_of([own[place] for place in piece], cast(Any, self._tokenizer).pad_token_id)
                found.append(batch | {"num_items_in_batch": output["num_items_in_batch"]})
        return found

    def _length(self, row: KeptGroup) -> int:
        """Tokens that a row is forwarded with; 0 where it moves nothing and so is not."""
        (columns,) = row.rows
        mask = columns["completion_mask"] * columns.get("tool_mask", 1)
        moves = (columns["advantages"] * mask != 0).any() if self._skips else (mask > 0).any()
        return len(columns["prompt_ids"]) + len(columns["completion_ids"]) if bool(moves) else 0

    @property
    def _skips(self) -> bool:
        """Whether rows without advantage are not forwarded; the divergence to a reference would move them too."""
        return self.args.skip_unmoved and not self.beta

    # -- loss ----------------------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        if self.aux_loss_enabled:
            raise SettingsError("a mixture of experts needs its balancing loss, which this loss has not", where="model")
        mask = inputs["completion_mask"]
        mask = (mask * inputs["tool_mask"] if "tool_mask" in inputs else mask).float()
        advantages = inputs["advantages"]
        advantages = (advantages if advantages.dim() == 2 else advantages[:, None]).expand_as(mask) * (mask > 0)
        rows = self._forwarded(advantages, mask)
        part = {name: value[rows] for name, value in inputs.items() if _by_row(name, value, len(mask))}
        part, width = _trimmed(part, mask[rows])
        logps, entropy, _ = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([part["prompt_ids"], part["completion_ids"]], 1),
            torch.cat([part["prompt_mask"], part["completion_mask"]], 1),
            width,
            compute_entropy=True,
        )
        assert entropy is not None, "it was asked for"
        weight, gain = mask[rows, :width], advantages[rows, :width]
        log_ratio = (logps - part["old_per_token_logps"]) * weight
        loss = self._token_loss(logps, log_ratio, gain, weight)
        if self.beta:
            loss = loss + self.beta * policy_loss.divergence(logps, part["ref_per_token_logps"])
        normaliser = NORMALISERS[self.loss_type]
        self._note(log_ratio.detach(), gain, entropy.detach(), weight, part["prompt_ids"].shape[1])
        return share(loss, weight, self._denominator(inputs, len(mask), normaliser), normaliser)

    def _token_loss(self, logps: Tensor, log_ratio: Tensor, gain: Tensor, weight: Tensor) -> Tensor:
        low, high, kind = self.epsilon_low, self.epsilon_high, self.args.policy_loss
        if kind == "cispo":
            return policy_loss.cispo(logps, log_ratio, gain, 0.0, 1 + high)
        if kind == "importance":
            return policy_loss.importance(log_ratio, gain)
        if kind == "gspo":
            return policy_loss.clipped(policy_loss.sequence_log_ratio(log_ratio, weight), gain, low, high)
        dual = self.args.dual_clip if kind == "dual" else None
        return policy_loss.clipped(log_ratio, gain, low, high, dual)

    def _forwarded(self, advantages: Tensor, mask: Tensor) -> Tensor:
        """Rows that move the policy, the longest last; one at least, so that there is a gradient to be zero."""
        moved = (advantages != 0).any(1) if self._skips else mask.any(1)
        lengths = mask.sum(1)
        rows = moved.nonzero()[:, 0]
        if not len(rows):
            rows = lengths.argmin()[None]
        self.forwarded_rows += self.over_all(len(rows))
        self.left_out_rows += self.over_all(len(mask) - len(rows))
        return rows[lengths[rows].argsort(stable=True)]

    def _denominator(self, inputs: Batch, rows: int, normaliser: Normaliser) -> Tensor:
        """D of the optimizer step, divided by the processes, whose gradients are averaged."""
        training = self.mode == "train"
        cuts = self.current_gradient_accumulation_steps if training else 1
        if normaliser == "constant":
            rows = self.args.per_device_train_batch_size if training else rows  # the mean, passes have more or fewer
            return torch.tensor(float(rows * cuts * self.longest))
        total = inputs["num_items_in_batch"].float() / self.accelerator.num_processes
        return total * cuts / (self.args.steps_per_generation or 1) if training else total

    def _note(self, log_ratio: Tensor, gain: Tensor, entropy: Tensor, weight: Tensor, before: int) -> None:
        """Metrics of a step, over the tokens that all its micro-batches and processes have forwarded.

        `before` are the tokens of the widest prompt, which were forwarded too.
        """
        here = weight > 0
        ratio = log_ratio.exp()[here]
        if not bool(ratio.isfinite().all()):
            raise NumericalError("a ratio of probabilities is not finite", where="training", fix="lower learning_rate")
        clip = policy_loss.is_clipped(log_ratio, gain, self.epsilon_low, self.epsilon_high)[here]
        divergence = policy_loss.divergence(-log_ratio[here], torch.zeros_like(ratio))
        furthest = (ratio - 1).abs().max() if len(ratio) else ratio.sum()
        sums = [entropy[here].sum(), ratio.sum(), clip.sum(), divergence.sum(), here.sum()]
        cells = [weight.numel(), weight.numel() + len(weight) * before]
        found = torch.cat([torch.stack(sums), ratio.new_tensor(cells), furthest[None]]).double()
        self._noted = (*self._noted, found)
        if self.mode == "train" and (self._step + 1) % self.current_gradient_accumulation_steps:
            return
        everywhere, self._noted = cast(Tensor, gather(torch.stack(self._noted))), ()
        *totals, tokens, cells, _ = everywhere[:, :-1].sum(0).tolist()
        forwarded = everywhere[:, -2].view(self.accelerator.num_processes, -1).sum(1)
        names = ("entropy", "ratio/mean", "clip_ratio/region_mean", "kl/sampler")
        metrics = {name: total / max(tokens, 1.0) for name, total in zip(names, totals, strict=True)}
        metrics |= {"packing": tokens / cells, "ratio/furthest": float(everywhere[:, -1].max())}
        if len(forwarded) > 1:
            metrics["imbalance"] = float(forwarded.max() / forwarded.mean())
        for name, value in metrics.items():
            self._metrics[self.mode][name].append(value)

    # -- state ---------------------------------------------------------------------------------------------------------

    def control_state(self) -> dict[str, Any]:
        """What a checkpoint keeps besides TRL's own, as JSON can hold it."""
        kept = [] if self.read_later is None else self.read_later.kept
        rows = [self.forwarded_rows, self.left_out_rows, self.answers_drawn_again]
        found = {"drawn_tokens": self.drawn_tokens, "rows": rows, "read_later": kept, "forward_passes": self._step}
        return found | ({} if self.watch is None else {"watch": self.watch.state()})

    def load_control_state(self, state: dict[str, Any]) -> None:
        self.drawn_tokens, self._step = state["drawn_tokens"], state["forward_passes"]
        self.forwarded_rows, self.left_out_rows, self.answers_drawn_again = state["rows"]
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
            save_file(_flat(self._buffered_inputs or []), place / DRAWN.format(self.accelerator.process_index))
        if self.queue is not None and self.queue.groups:
            self.queue.save(place / REPLAY.format(self.accelerator.process_index))
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
            self._buffered_inputs = _parts(load_file(file, device=str(self.accelerator.device)))
        replay = Path(checkpoint) / REPLAY.format(self.accelerator.process_index)
        if self.args.replay and replay.is_file():
            self._replay_queue().load(replay, str(self.accelerator.device))


def _flat(parts: list[Batch]) -> dict[str, Tensor]:
    """What a generation was cut into, under names that tell the part."""
    return {f"{number} {name}": value.clone() for number, part in enumerate(parts) for name, value in part.items()}


def _parts(flat: dict[str, Tensor]) -> list[Batch]:
    """The inverse of `_flat`."""
    parts: dict[int, Batch] = {}
    for name, value in flat.items():
        number, _, key = name.partition(" ")
        parts.setdefault(int(number), {})[key] = value
    return [parts[number] for number in sorted(parts)]


def together(prompts: list[Any], several: int) -> tuple[list[Any], int]:
    """Each group's prompt once and how many answers it has; where groups are cut by a process's slice, every row."""
    groups = [prompts[start : start + several] for start in range(0, len(prompts), several)]
    whole = all(len(group) == several and all(one == group[0] for one in group) for group in groups)
    return ([group[0] for group in groups], several) if whole else (prompts, 1)


def _number(name: str) -> int:
    """A seed of a name."""
    import hashlib

    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6])


def _by_row(name: str, value: Any, rows: int) -> bool:
    return isinstance(value, Tensor) and name != "advantages" and value.dim() == 2 and value.shape[0] == rows


def _trimmed(part: Batch, mask: Tensor) -> tuple[Batch, int]:
    """Without the columns that only rows had that are not here: prompts end at the right, answers begin at the left."""
    before = int(part["prompt_mask"].sum(1).max())
    width = max(int((mask > 0).sum(1).max()), int(part["completion_mask"].sum(1).max()), 1)
    return {
        name: value[:, value.shape[1] - before :] if name.startswith("prompt") else value[:, :width]
        for name, value in cast(dict[str, Tensor], part).items()
    }, width
