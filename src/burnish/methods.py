"""The table of methods. Its rows drive: whatever else names a method, a stage or a benchmark is derived from here.

From these rows come the stages of recipes (`burnish.stages`), the public names of the package, the commands of a stage,
the layer of its folder in the import contracts, the optimizers of training, `burnish methods`, `make bench NAME`, the
head of every page in docs/methods and the lists of the README. What is derived at run time needs nothing;
`python scripts/derive.py` writes the rest. Standard library only: `burnish --help` reads this table.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Verb:
    """A stage, as recipes, the command line and Python name it.

    Attributes:
        name: what a recipe says, `stage: quantize`.
        settings: its class, as "module:Class"; the module is imported when the class is first used.
        help: one sentence for the list of commands.
        examples: command lines for its help.
        command: the words on the command line, where they are not the name.
        makes: what the help calls its result.
        function: its function in `burnish.cli` as "module:function", where it has options beside its settings.
    """

    name: str
    settings: str
    help: str
    examples: tuple[str, ...]
    command: str = ""
    makes: str = "checkpoint"
    function: str = ""

    @property
    def words(self) -> tuple[str, ...]:
        """What is typed after `burnish`."""
        return tuple((self.command or self.name).split())

    @property
    def module(self) -> str:
        return self.settings.partition(":")[0]

    @property
    def class_name(self) -> str:
        return self.settings.partition(":")[2]


@dataclass(frozen=True)
class Benchmark:
    """A claim: `benchmarks/NAME.py`, which writes `benchmarks/results/NAME.json`.

    Attributes:
        name: as above.
        arguments: what `make bench NAME` gives it.
        needs: what a clone lacks to run it; empty where a clone is enough.
    """

    name: str
    arguments: tuple[str, ...] = ()
    needs: str = ""


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: what the field calls it.
        does: one clause.
        use: the command, with the options that choose it; or the key of a recipe.
        source: authors or title, year, arXiv id.
        page: its documentation page in docs/methods, which holds the evidence.
        benchmarks: what measures it.
        verb: the stage that it is, where it is one of its own.
        optimizer: its class as "module:Class", where it is an optimizer; `--optimizer` takes the name of its page.
    """

    name: str
    does: str
    use: str
    source: str
    page: str
    benchmarks: tuple[Benchmark, ...] = ()
    verb: Verb | None = None
    optimizer: str = ""


EVENTS = Benchmark("events", ("hawkes3", "hawkes2"), needs="for the real data sets --data DIR, see the script")
OPTIMIZERS = Benchmark("optimizers", needs="--data DIR with the speeches and Shakespeare, --work DIR")
OPTIMIZER_STEP = Benchmark("optimizer_step")
OPTIMIZER_SWEEP = Benchmark("optimizer_sweep", needs="--data DIR with speeches and reviews, --work DIR, --official DIR")
QUANTIZE_BASELINES = Benchmark("quantize_baselines", needs="an environment with llm-compressor, --work DIR")
YAQA = Benchmark("yaqa", needs="8 GB of disk per seed: --work DIR and the step to take, see the script")
LOW_BITS = Benchmark("low_bits", needs="--data DIR with movie reviews and speeches, --work DIR, the peer's environment")
MIXED_WIDTHS = Benchmark("mixed_widths", needs="--data DIR with movie reviews and speeches, --work DIR of low_bits")
LEARNED_LAYER = Benchmark("learned_layer", needs="--work DIR of low_bits")
ROUNDING_AGAIN = Benchmark("rounding_again", ("--work", "runs/slim-router"))
SCALE_TUNING = Benchmark("scale_tuning", needs="--data DIR with movie reviews and speeches, --work DIR")
SLIM = Benchmark("slim", ("--work", "runs/slim-benchmark"))
REASON_TINY = Benchmark("reason_tiny", needs="--work DIR, and some hours of one core")
REASON_NULL = Benchmark("reason_null", needs="--data FILE with problems of GSM8K, --work DIR")
ALIGN_LINEAR = Benchmark("align_linear")
ALIGN_STEP = Benchmark("align_step")
ALIGN_POLICY = Benchmark("align_policy", needs="--data DIR with movie reviews and sentence polarity, --work DIR")
AGENT = Benchmark("agent", needs="--start DIR, the taught half of recipes/calculator.yaml, --work DIR")
RL_STEP = Benchmark("rl_step", needs="--start DIR, a checkpoint that answers sums")
LONG_CONTEXT = Benchmark("long_context", ("--work", "runs/long-context-benchmark"))
SHORT_ARC = Benchmark("short_arc", needs="--start DIR, the supervised half of recipes/short_arc.yaml, --work DIR")
ALIGN_DPO = Benchmark("align_dpo", needs="--data DIR with HH harmless-base, --model DIR, --work DIR")
CURRICULUM = Benchmark("curriculum", ("--work", "runs/curriculum-benchmark"))

METHODS: tuple[Method, ...] = (
    Method(
        name="evaluation",
        does="perplexity, divergence from a reference, agreement, speed and memory, with intervals",
        use="burnish evaluate",
        source="intervals: Student, 1908",
        page="evaluation",
        benchmarks=(Benchmark("evaluate_overhead"), Benchmark("intervals")),
    ),
    Method(
        name="engine speed",
        does="tokens per second of checkpoints side by side in vLLM or llama.cpp, and which format is faster here",
        use="burnish evaluate --engine",
        source="ours; batches asked in turns, paired intervals of ratios",
        page="speed",
        benchmarks=(Benchmark("engine_speed", needs="VLLM_PYTHON, LLAMA_PYTHON, --model, --work DIR"),),
    ),
    Method(
        name="RTN, GPTQ",
        does="weights rounded to nearest, or one-sided with the covariance of a layer's inputs",
        use="burnish quantize --method gptq",
        source="GPTQ, 2022, arXiv:2210.17323; QuIP (LDLQ), 2023, arXiv:2307.13304",
        page="rounding",
        benchmarks=(QUANTIZE_BASELINES, YAQA, LOW_BITS, MIXED_WIDTHS, ROUNDING_AGAIN),
        verb=Verb(
            name="quantize",
            settings="burnish.quantize.stage:Quantize",
            help="Round the weights to 2-8 bits in a format that engines load.",
            examples=(
                "burnish quantize models/smollm2 --bits 3 -o smollm2-3bit --evaluate",
                "burnish quantize models/smollm2 --group-size null -o smollm2-4bit",
            ),
            makes="quantized checkpoint",
        ),
    ),
    Method(
        name="YAQA",
        does="two-sided adaptive rounding that keeps the model's own distribution",
        use="burnish quantize --method yaqa",
        source="Model-Preserving Adaptive Rounding, 2025, arXiv:2505.22988",
        page="yaqa",
        benchmarks=(LOW_BITS, YAQA, Benchmark("fast_units")),
    ),
    Method(
        name="learned rounding",
        does="codes and scales learned block by block from another rule's start, weighed by the model's sensitivity",
        use="burnish quantize --method learned",
        source="Optimize Weight Rounding via Signed Gradient Descent, 2023, arXiv:2309.05516",
        page="learned-rounding",
        benchmarks=(LOW_BITS, LEARNED_LAYER),
    ),
    Method(
        name="stride-wise OBS quantization",
        does="convolutions and linear layers of any network in mixed widths, by the kernel, for one kind of content",
        use="burnish.quantize.strides",
        source="Optimal Brain Compression, 2022, arXiv:2208.11580",
        page="strides",
        benchmarks=(Benchmark("strides"),),
    ),
    Method(
        name="KV-cache codes",
        does="keys and values that a model caches in 2 to 4 bits a number, rotated, or as a few atoms of a dictionary",
        use="burnish kv-cache",
        source="rotated: TurboQuant, 2025, arXiv:2504.19874; dictionaries: Lexico, 2024, arXiv:2412.08890",
        page="kv-cache",
        benchmarks=(Benchmark("kv_cache", needs="hqq and optimum-quanto, --data DIR with speeches, --work DIR"),),
    ),
    Method(
        name="outliers",
        does="what stands out in every matrix's inputs and weights, and what a bias of channels against it brings",
        use="burnish quantize --outliers",
        source="massive activations, 2024, arXiv:2402.17762; Outlier Suppression+, 2023, arXiv:2304.09145",
        page="outliers",
        benchmarks=(Benchmark("outliers", needs="--data DIR with speeches, --work DIR"),),
    ),
    Method(
        name="factors of low rank",
        does="a part of low rank beside rounded weights, by what inputs use (CorDA), PiSSA or LoftQ, as an adapter",
        use="burnish quantize --low-rank",
        source="CorDA, 2024, arXiv:2406.05223; PiSSA, 2024, arXiv:2404.02948; LoftQ, 2023, arXiv:2310.08659",
        page="corda",
        benchmarks=(Benchmark("corda", needs="--model of recipes/small_and_right.yaml, --work DIR"),),
    ),
    Method(
        name="scale tuning",
        does="scales and norms of a packed checkpoint trained against the original's predictions; codes and size stay",
        use="burnish tune",
        source="ours; the gradient through rounding: straight-through estimator, 2013, arXiv:1308.3432",
        page="scale-tuning",
        benchmarks=(SCALE_TUNING,),
        verb=Verb(
            name="tune",
            settings="burnish.tune.stage:Tune",
            help="Train the scales and norms of a packed checkpoint against the original.",
            examples=(
                "burnish tune small --teacher models/smollm2 --data texts.jsonl -o tuned",
                "burnish tune small --teacher models/smollm2 --data a.txt --no-norms -o tuned",
            ),
            makes="packed checkpoint",
        ),
    ),
    Method(
        name="ternary",
        does="weights of three or four levels, trained as they will be stored against the original's predictions",
        use="burnish qat",
        source="The Era of 1-bit LLMs (BitNet b1.58), 2024, arXiv:2402.17764; Learned Step Size Quantization, 2020, "
        "arXiv:1902.08153; LoftQ, 2023, arXiv:2310.08659",
        page="ternary",
        benchmarks=(Benchmark("ternary", ("--work", "runs/ternary-benchmark")),),
        verb=Verb(
            name="qat",
            settings="burnish.qat.stage:Qat",
            help="Train a model with ternary or 2-bit weights against its own predictions, and pack it.",
            examples=(
                "burnish qat models/smollm2 --bits ternary --data texts.jsonl -o ternary",
                "burnish qat models/smollm2 --bits ternary --low-rank 16 --data texts.jsonl -o ternary",
                "burnish qat models/smollm2 --bits 2 --group-size 32 --data texts.jsonl --steps 2000 -o two",
            ),
            makes="packed checkpoint",
        ),
    ),
    Method(
        name="training",
        does="one loop: exact token weighting, packing that keeps documents apart, states that survive kill -9",
        use="burnish train",
        source="warm-up, stable, decay: MiniCPM, 2024, arXiv:2404.06395",
        page="training",
        benchmarks=(
            Benchmark("train_loop"),
            Benchmark("loss_memory", ("--work", "runs/loss-memory")),
            Benchmark("families", ("--work", "runs/families")),
            Benchmark("architectures", ("--work", "runs/architectures")),
        ),
        verb=Verb(
            name="train",
            settings="burnish.train.stage:Train",
            help="Train on texts or chats, further or from scratch: NorMuon, Muon, COSMOS, AdamW.",
            examples=(
                "burnish train models/smollm2 --data chats.jsonl --lr 2e-4 -o tuned",
                "burnish train config.json --tokenizer bpe:1024 --data text.txt -o mine",
                "burnish train models/smollm2 --explain",
            ),
            function="train:train",
        ),
    ),
    Method(
        name="position views",
        does="every document under other positions too, with equal predictions: evidence counts at any depth",
        use="burnish train --objective view=skip",
        source="Shuffle the Context: RoPE-Perturbed Self-Distillation, 2026, arXiv:2604.14339",
        page="position-views",
        benchmarks=(LONG_CONTEXT,),
    ),
    Method(
        name="token weights",
        does="tokens count by what the context beyond a window changes in their prediction",
        use="burnish train --objective weights=kl,window=2048,sinks=4",
        source="Token Weighting for Long-Range Modeling, 2025, arXiv:2503.09202; LongCE, 2024, arXiv:2410.23771",
        page="token-weights",
        benchmarks=(LONG_CONTEXT,),
    ),
    Method(
        name="RULER",
        does="answers at any length and depth of the evidence, with what is really sent shown",
        use="burnish evaluate --task ruler:niah_multikey,vt --lengths 1k,2k",
        source="RULER: What's the Real Context Size of Your Long-Context Language Models?, 2024, arXiv:2404.06654",
        page="ruler",
        benchmarks=(Benchmark("ruler", ("--work", "runs/ruler-benchmark")),),
    ),
    Method(
        name="LongPPL",
        does="perplexity of the tokens that need a long context, chosen by an evaluator's own gain",
        use="burnish evaluate --task longppl --context 8192",
        source="What is Wrong with Perplexity for Long-context Language Modeling?, 2024, arXiv:2410.23771",
        page="longppl",
    ),
    Method(
        name="sparse attention",
        does="what ten mechanisms of sparse attention lose and would read, on RULER, in two protocols",
        use="burnish evaluate --task ruler:niah_multikey,vt --attention sink:64+local:256+quest:0.1",
        source="The Sparse Frontier, 2025, arXiv:2504.17768; Quest, 2024, arXiv:2406.10774",
        page="sparse-attention",
        benchmarks=(Benchmark("sparse_attention", ("--work", "runs/long-context-benchmark")),),
    ),
    Method(
        name="adapters on experts",
        does="LoRA on the routed experts of a mixture, for each its own or with what they can share tied",
        use="burnish train --lora-experts shared",
        source="togethercomputer/xorl, 2025; LoRA, 2021, arXiv:2106.09685",
        page="moe-lora",
        benchmarks=(Benchmark("moe_lora", ("--work", "runs/slim-benchmark")),),
    ),
    Method(
        name="sharded training",
        does="NorMuon, Muon and COSMOS under FSDP2, with the answer of one process",
        use="launch: {processes: N}",
        source="NorMuon, 2025, arXiv:2510.05491; PyTorch FSDP, 2023, arXiv:2304.11277",
        page="sharding",
        benchmarks=(Benchmark("sharded_step"),),
    ),
    Method(
        name="NorMuon",
        does="orthogonalised updates whose rows move by the same amount",
        use="burnish train --optimizer normuon",
        source="NorMuon, 2025, arXiv:2510.05491",
        page="normuon",
        optimizer="burnish.optim.normuon:NorMuon",
        benchmarks=(OPTIMIZERS, OPTIMIZER_STEP, OPTIMIZER_SWEEP),
    ),
    Method(
        name="Muon",
        does="orthogonalised momentum",
        use="burnish train --optimizer muon",
        source="Keller Jordan, 2024; Muon is Scalable, 2025, arXiv:2502.16982",
        page="muon",
        optimizer="burnish.optim.normuon:Muon",
        benchmarks=(OPTIMIZERS, OPTIMIZER_STEP),
    ),
    Method(
        name="COSMOS",
        does="a low-rank preconditioned part and an orthogonalised rest",
        use="burnish train --optimizer cosmos",
        source="COSMOS, 2025, arXiv:2502.17410",
        page="cosmos",
        optimizer="burnish.optim.cosmos:COSMOS",
        benchmarks=(OPTIMIZERS, OPTIMIZER_STEP),
    ),
    Method(
        name="SOAP",
        does="Adam in the eigenbasis of Shampoo, as a baseline",
        use="burnish train --optimizer soap",
        source="SOAP, 2024, arXiv:2409.11321",
        page="soap",
        optimizer="burnish.optim.soap:SOAP",
        benchmarks=(OPTIMIZERS, OPTIMIZER_STEP),
    ),
    Method(
        name="AGD",
        does="momentum over the root mean square of its change, as a baseline",
        use="burnish train --optimizer agd",
        source="AGD, 2023, arXiv:2312.01658",
        page="agd",
        optimizer="burnish.optim.agd:AGD",
    ),
    Method(
        name="WSAM",
        does="any optimizer with the sharpness of the loss as a weighted term, at two gradients a step",
        use="burnish train --sharpness 0.5",
        source="WSAM, 2023, arXiv:2305.15817",
        page="wsam",
    ),
    Method(
        name="distillation",
        does="divergences, hidden states and routers of a teacher, normalised per token",
        use="burnish distill",
        source="Distilling the Knowledge in a Neural Network, 2015, arXiv:1503.02531",
        page="distillation",
        benchmarks=(
            SLIM,
            Benchmark("on_policy", ("--work", "runs/slim-benchmark")),
            Benchmark("activation", ("--work", "runs/activation")),
        ),
        verb=Verb(
            name="distill",
            settings="burnish.distill.stage:Distill",
            help="Train a student to predict what a teacher predicts.",
            examples=(
                "burnish distill slimmed --teacher models/olmoe --data a.jsonl -o recovered",
                "burnish distill slimmed --teacher models/olmoe --data a.jsonl --on-policy 1 -o recovered",
            ),
            makes="trained student",
        ),
    ),
    Method(
        name="SlimMoE",
        does="experts narrowed by importance, all of them kept; or split, and the best pieces kept",
        use="burnish slim",
        source="SlimMoE, 2025, arXiv:2506.18349",
        page="slimmoe",
        benchmarks=(
            SLIM,
            Benchmark("slim_router", ("--work", "runs/slim-router")),
            Benchmark("slim_widths", ("--work", "runs/slim-router")),
            Benchmark("slim_reap", needs="an environment with llm-compressor: --peer PYTHON, --model MIXTURE"),
        ),
        verb=Verb(
            name="slim",
            settings="burnish.slim.stage:Slim",
            help="Make a model smaller: narrower experts, pieces of them, fewer experts, or fewer layers.",
            examples=(
                "burnish slim models/olmoe --target 20% --score fisher -o slimmed",
                "burnish slim models/olmoe --target 24GB --method best --calibration a.jsonl -o slimmed",
                "burnish slim models/olmoe --target 20% --rounds 2 --data a.jsonl -o slimmed",
                "burnish slim models/smollm2 --method depth --num-layers 26 -o shallower",
            ),
            makes="smaller checkpoint",
        ),
    ),
    Method(
        name="depth pruning",
        does="the decoder layers left out that a model misses least",
        use="burnish slim --method depth",
        source="ShortGPT, 2024, arXiv:2403.03853",
        page="depth",
        benchmarks=(Benchmark("depth", ("--work", "runs/depth")),),
    ),
    Method(
        name="upcycling",
        does="a dense model as a mixture of experts that computes the same",
        use="burnish convert upcycle",
        source="Sparse Upcycling, 2022, arXiv:2212.05055",
        page="upcycling",
        benchmarks=(Benchmark("upcycle", ("--work", "runs/upcycle-benchmark")),),
        verb=Verb(
            name="upcycle",
            settings="burnish.convert.stage:Upcycle",
            help="Make a mixture of experts of a dense Llama-type model; it computes the same until it is trained.",
            examples=("burnish convert upcycle models/smollm2 --num-experts 4 -o smollm2-moe",),
            command="convert upcycle",
            makes="mixture",
        ),
    ),
    Method(
        name="latent attention",
        does="keys and values as a latent with half the cache, in a checkpoint that stock engines load",
        use="burnish convert mla",
        source="CARE, 2026, arXiv:2603.17946; TransMLA, 2025, arXiv:2502.07864",
        page="care",
        benchmarks=(
            Benchmark("care", needs="--model DIR, --data DIR with humaneval.jsonl.gz, --work DIR"),
            Benchmark("healing", needs="--model DIR, --work DIR"),
        ),
        verb=Verb(
            name="mla",
            settings="burnish.convert.stage:LatentAttention",
            help="Replace keys and values by a latent and one rotary key, as in DeepSeek: a smaller cache.",
            examples=(
                "burnish convert mla models/smollm2 --cache 0.5 -o smollm2-mla --evaluate",
                "burnish convert mla models/smollm2 --cache 0.75 --engine transformers -o smollm2-mla",
            ),
            command="convert mla",
        ),
    ),
    Method(
        name="Ladder-Residual",
        does="layers that compute while the all-reduces of those before them run, for tensor parallelism",
        use="burnish convert ladder",
        source="Ladder-Residual, 2025, arXiv:2501.06589",
        page="ladder",
        benchmarks=(
            Benchmark("ladder", needs="--model DIR, --data DIR with humaneval.jsonl.gz, --work DIR"),
            Benchmark("healing", needs="--model DIR, --work DIR"),
        ),
        verb=Verb(
            name="ladder",
            settings="burnish.convert.stage:LadderResidual",
            help="Let layers compute while all-reduces run: they read the stream of one sub-block earlier.",
            examples=(
                "burnish convert ladder models/smollm2 --layers auto:4 --custom-code -o smollm2-ladder --evaluate",
                "burnish convert ladder models/smollm2 --layers last:8 --custom-code -o smollm2-ladder",
            ),
            command="convert ladder",
        ),
    ),
    Method(
        name="SwiftKV",
        does="later layers that take keys and values from an earlier one, so that a prompt does not run them",
        use="burnish convert swiftkv",
        source="SwiftKV, 2024, arXiv:2410.03960",
        page="swiftkv",
        benchmarks=(Benchmark("swiftkv", needs="--model DIR, --data DIR with humaneval.jsonl.gz, --work DIR"),),
        verb=Verb(
            name="swiftkv",
            settings="burnish.convert.stage:SwiftKV",
            help="Let a prompt run the first layers alone: later ones take keys and values from their output.",
            examples=(
                "burnish convert swiftkv models/smollm2 --from-layer 15 --custom-code -o smollm2-swiftkv --evaluate",
                "burnish convert swiftkv models/smollm2 --from-layer 24 --custom-code -o smollm2-swiftkv",
            ),
            command="convert swiftkv",
        ),
    ),
    Method(
        name="unpacking",
        does="packed weights (FP8, MXFP4, compressed-tensors) as dense ones, for the stages that need those",
        use="burnish convert unpack",
        source="DeepSeek-V3 Technical Report, 2024, arXiv:2412.19437",
        page="unpacking",
        verb=Verb(
            name="unpack",
            settings="burnish.convert.stage:Unpack",
            help="Make packed weights dense, a tensor at a time: FP8, MXFP4 and whole numbers of compressed-tensors.",
            examples=("burnish convert unpack models/deepseek-v3 -o deepseek-v3-bf16",),
            command="convert unpack",
        ),
    ),
    Method(
        name="GGUF",
        does="a checkpoint as one file for llama.cpp, packed whole numbers bit for bit",
        use="burnish export gguf",
        source="ggml's file format, version 3",
        page="gguf",
        benchmarks=(Benchmark("gguf_export", needs="an environment with xllamacpp, --work DIR"),),
    ),
    Method(
        name="Lookahead",
        does="several tokens a forward pass, foretold from the prompt and earlier answers, without a draft model",
        use="burnish serve up --speculate",
        source="Lookahead, 2023, arXiv:2312.12728",
        page="lookahead",
        benchmarks=(Benchmark("lookahead", needs="--model DIR, --data DIR with humaneval.jsonl.gz, --work DIR"),),
    ),
    Method(
        name="speculators",
        does="a draft of one layer that proposes tokens out of a part of the vocabulary, from the model's own answers",
        use="burnish speculator",
        source="EAGLE-3, 2025, arXiv:2503.01840; FR-Spec, 2025, arXiv:2502.14856",
        page="speculators",
        benchmarks=(Benchmark("speculators", needs="--model DIR, --work DIR"),),
        verb=Verb(
            name="speculator",
            settings="burnish.distill.stage:Speculator",
            help="Train a draft that proposes tokens to a model, from the model's own answers.",
            examples=(
                "burnish speculator models/smollm2 --data wikitext2-valid -o draft",
                "burnish speculator models/smollm2 --data chats.jsonl --vocabulary 3072 -o draft",
            ),
            makes="draft",
        ),
    ),
    Method(
        name="preference training",
        does="DPO and reward models as thin subclasses of TRL's trainers, with a loss chosen per pair",
        use="burnish align",
        source="Direct Preference Optimization, 2023, arXiv:2305.18290",
        page="preference-training",
        benchmarks=(ALIGN_STEP, ALIGN_DPO),
        verb=Verb(
            name="align",
            settings="burnish.align.stage:Align",
            help="Train on preference pairs: DPO, APS and R3M, their usual baselines, or a reward model.",
            examples=("burnish align models/smollm2 --loss r3m-dpo --data prefs.jsonl -o aligned",),
        ),
    ),
    Method(
        name="APS",
        does="preference losses with a scale for every pair",
        use="burnish align --loss aps-dpo",
        source="Adaptive Preference Scaling, 2024, arXiv:2406.02764",
        page="aps",
        benchmarks=(ALIGN_LINEAR, ALIGN_DPO, ALIGN_POLICY),
    ),
    Method(
        name="R3M",
        does="preference losses that cap the pull of a wrong label",
        use="burnish align --loss r3m-dpo",
        source="Robust RL from Corrupted Human Feedback, 2024, arXiv:2406.15568",
        page="r3m",
        benchmarks=(ALIGN_LINEAR, ALIGN_DPO, ALIGN_POLICY),
    ),
    Method(
        name="GRPO",
        does="training on answers that can be checked, with the sampler's own log-probabilities and every number told",
        use="burnish align grpo",
        source="DeepSeekMath, 2024, arXiv:2402.03300; Dr. GRPO, 2025, arXiv:2503.20783",
        page="rl",
        benchmarks=(AGENT, RL_STEP),
        verb=Verb(
            name="grpo",
            settings="burnish.align.stage:Grpo",
            help="Train by GRPO on problems whose answers are checked, with or without a rule that looks at length.",
            examples=(
                "burnish align grpo models/mine --env chain --shaping short_arc -o shorter",
                "burnish align grpo models/mine --env reasoning_gym:chain_sum -o better",
                "burnish align grpo models/agent --env calculator --floor 0.4 -o better-agent",
            ),
            command="align grpo",
        ),
    ),
    Method(
        name="Short-ARC",
        does="shorter answers while accuracy holds: a length rule that keeps order, and a controller of its pressure",
        use="burnish align grpo --shaping short_arc",
        source="Short-ARC, a title submitted for ICLR 2026; the formulation is ours",
        page="short-arc",
        benchmarks=(SHORT_ARC,),
    ),
    Method(
        name="label audit",
        does="which preference labels to distrust, from margins of models that did not see them",
        use="burnish audit",
        source="R3M's delta and APS's tau over cross-fitted margins",
        page="label-audit",
        benchmarks=(
            Benchmark("align_audit", needs="--data DIR with the two preference files, --model DIR"),
            Benchmark("align_calibration", needs="--data DIR with HH harmless-base"),
            Benchmark("audit_features", needs="--data DIR with HH harmless-base, --model DIR"),
            Benchmark(
                "audit_verdict", needs="hh qa coin planted --data DIR with the two preference files, --model DIR"
            ),
        ),
    ),
    Method(
        name="THP",
        does="the transformer Hawkes process with its likelihood done right",
        use="burnish events fit --model thp",
        source="Transformer Hawkes Process, 2020, arXiv:2002.09291",
        page="thp",
        benchmarks=(EVENTS,),
    ),
    Method(
        name="SMURF-THP",
        does="event times by score matching, with exact quantiles",
        use="burnish events fit --model smurf-thp",
        source="SMURF-THP, 2023, arXiv:2310.16336",
        page="smurf-thp",
        benchmarks=(EVENTS,),
    ),
    Method(
        name="SMASH",
        does="times, marks and places by score matching",
        use="burnish events fit --model smash",
        source="SMASH, 2023, arXiv:2310.16310",
        page="smash",
        benchmarks=(EVENTS,),
    ),
    Method(
        name="PRIMAL",
        does="sparse linear programs with the solution for every lambda, as scikit-learn estimators",
        use="burnish.linear_model",
        source="Parametric Simplex Method for Sparse Learning, NIPS 2017",
        page="primal",
        benchmarks=(Benchmark("primal", needs="for pyprimal --peer PYTHON of benchmarks/env/primal.txt"),),
    ),
    Method(
        name="Stoc-iALM",
        does="training under expectation constraints: losses elsewhere stay within bounds, with multipliers",
        use="burnish.optim.constrained",
        source="Li, Chen, Liu, Lu, Xu, 2022, arXiv:2212.09513; PStorm, 2020, arXiv:2006.00425",
        page="stoc-ialm",
        benchmarks=(
            Benchmark("stoc_ialm", needs="for Cooper --peer PYTHON of benchmarks/env/stoc_ialm.txt"),
            Benchmark("loss_bound", needs="--data DIR with tinyshakespeare.txt.gz, --model DIR, --work DIR"),
        ),
    ),
    Method(
        name="GSA",
        does="one more call reads n samples and writes a better answer; votes, best-of-n and refinement beside it",
        use="burnish reason run",
        source="LLMs Can Generate a Better Answer by Aggregating Their Own Responses, 2025, arXiv:2503.04104",
        page="gsa",
        benchmarks=(REASON_TINY, REASON_NULL),
    ),
    Method(
        name="RSA",
        does="a population of answers, each rewritten from k others, loop after loop",
        use="burnish reason run",
        source="Recursive Self-Aggregation Unlocks Deep Thinking in Large Language Models, 2025, arXiv:2509.26626",
        page="rsa",
        benchmarks=(REASON_TINY,),
    ),
    Method(
        name="routed RSA",
        does="RSA whose groups go to a cheap or a strong model by how hard they look",
        use="burnish reason run",
        source="Squeeze Evolve, 2026, arXiv:2604.07725",
        page="routed-rsa",
        benchmarks=(REASON_TINY,),
    ),
    Method(
        name="aggregation-aware training",
        does="training rows of which a share shows the model its own answers, in the words of GSA and RSA",
        use="burnish data aggregate",
        source="Recursive Self-Aggregation Unlocks Deep Thinking in Large Language Models, 2025, arXiv:2509.26626",
        page="aggregation-training",
        benchmarks=(REASON_TINY,),
        verb=Verb(
            name="aggregate",
            settings="burnish.aggregate.stage:Aggregate",
            help="Put a model's own answers before a share of the problems, for training it to aggregate.",
            examples=("burnish data aggregate models/mine --data problems.jsonl -o rows",),
            command="data aggregate",
            makes="directory of rows",
        ),
    ),
    Method(
        name="data selection",
        does="a model's own shortest right answers as rows to learn from, with the solve rate of every problem",
        use="burnish data select",
        source="InfiR, 2025, arXiv:2502.11573; the shortest of the right ones is ours",
        page="selection",
        benchmarks=(SHORT_ARC,),
        verb=Verb(
            name="select",
            settings="burnish.select.stage:Select",
            help="Keep the shortest right answers that a model itself writes to problems.",
            examples=("burnish data select models/mine --data problems.jsonl --verifier chain --k 8 -o own",),
            command="data select",
            makes="directory of rows",
        ),
    ),
    Method(
        name="curricula",
        does="phases of training with rules that end them, all held-out sets measured, and a guard against forgetting",
        use="stage: curriculum",
        source="Infi-MMR, 2025, arXiv:2505.23091; rules of ending and the guard are ours",
        page="curricula",
        benchmarks=(CURRICULUM,),
        verb=Verb(
            name="curriculum",
            settings="burnish.curriculum.stage:Curriculum",
            help="Train in phases, each with its own data or environment and end, and guard what earlier ones taught.",
            examples=(
                "burnish curriculum models/mine -o taught "
                """--phases '{"name":"easy","data":"easy.jsonl","held_out":"easy-test.jsonl"}'""",
            ),
        ),
    ),
    Method(
        name="diagnosis and repair",
        does="problems that a quantized model has lost, the step where each goes wrong, and pairs that teach it again",
        use="burnish diagnose",
        source="Quantization Meets Reasoning, 2025, arXiv:2501.03035; 2025, arXiv:2505.11574",
        page="repair",
        benchmarks=(
            Benchmark("repair", ("--work", "runs/repair-benchmark")),
            Benchmark("small_and_right", needs="--run of recipes/small_and_right.yaml"),
        ),
        verb=Verb(
            name="diagnose",
            settings="burnish.diagnose.stage:Diagnose",
            help="Find the problems that a quantized model has lost, where each goes wrong, and pairs for a repair.",
            examples=(
                "burnish diagnose small --original models/mine --data problems.jsonl --verifier chain -o pairs",
                "burnish tune small --teacher models/mine --data pairs -o repaired",
            ),
            makes="directory of rows",
        ),
    ),
    Method(
        name="sampling",
        does="n continuations of every prompt in batches that finished rows leave, with every token's log-probability",
        use="burnish.generate",
        source="top-p: The Curious Case of Neural Text Degeneration, 2019, arXiv:1904.09751",
        page="sampling",
        benchmarks=(Benchmark("sampling"),),
    ),
    Method(
        name="grading",
        does="is this answer right: mathematics, numbers, exact words, chains, and programs behind walls",
        use="burnish reason run --verifier math",
        source="math-verify, 2024; HumanEval, 2021, arXiv:2107.03374; LiveCodeBench, 2024, arXiv:2403.07974",
        page="grading",
        benchmarks=(Benchmark("grading"),),
    ),
    Method(
        name="verifiable chains",
        does="sums modulo m whose every step can be checked, the task on which tiny models learn to reason",
        use="burnish data chain",
        source="ours; the form of the steps follows no paper",
        page="chains",
        benchmarks=(Benchmark("chains"),),
        verb=Verb(
            name="chain",
            settings="burnish.data.stage:DrawChains",
            help="Write verifiable chains: sums modulo 10 whose steps can be checked, with redundant checks.",
            examples=(
                "burnish data chain -n 40000 --steps 1-8 -o train.jsonl",
                "burnish data chain -n 800 --distinct --apart-from train.jsonl -o test.jsonl",
            ),
            command="data chain",
            function="data:chain",
        ),
    ),
    Method(
        name="table reading",
        does="sums of cells of a grid of digits, which a description says too: a task for phases that show one or both",
        use="burnish data table",
        source="the test of a curriculum after Infi-MMR, 2025, arXiv:2505.23091; the form is ours",
        page="tables",
        benchmarks=(CURRICULUM,),
        verb=Verb(
            name="table",
            settings="burnish.data.stage:DrawTables",
            help="Write tables to be read: digits in a grid, a description of it, and sums of some cells.",
            examples=(
                "burnish data table -n 3000 --rows 3 --columns 3 -o train.jsonl",
                "burnish data table -n 200 --seed 1 --distinct --apart-from train.jsonl -o test.jsonl",
            ),
            command="data table",
            function="data:table",
        ),
    ),
    Method(
        name="trajectories",
        does="episodes of agents, filtered, redacted and masked token by token, with weights by kind",
        use="burnish data trajectories",
        source="CoderForge-Preview, Together AI, 2026; the rules of the filters are ours",
        page="trajectories",
        benchmarks=(Benchmark("trajectories", ("--work", "runs/trajectories")),),
        verb=Verb(
            name="trajectories",
            settings="burnish.data.stage:CurateTrajectories",
            help="Filter episodes of agents, redact secrets, and mark the tokens that the model has written.",
            examples=(
                "burnish data trajectories episodes.jsonl --tokenizer models/smollm2 -o curated",
                "burnish data trajectories runs/swe-agent --filter verified --filter repeats=3 -o messages",
                "burnish data trajectories episodes.jsonl --explain django-1234",
            ),
            command="data trajectories",
            makes="rows",
            function="data:trajectories",
        ),
    ),
    Method(
        name="budget forcing",
        does="thinking ends after so many tokens, is sent on, or ends as soon as the answer stays the same",
        use="burnish reason run",
        source="s1: Simple test-time scaling, 2025, arXiv:2501.19393",
        page="budget-forcing",
    ),
    Method(
        name="CREST",
        does="attention heads that tell checking steps, turned while a model decodes: fewer of them, without training",
        use="burnish steer calibrate",
        source="Understanding and Steering the Cognitive Behaviors of Reasoning Models, 2025, arXiv:2512.24574",
        page="crest",
        benchmarks=(
            Benchmark("steer_tiny", ("--work", "runs/steer-tiny")),
            Benchmark("steer_serving", needs="VLLM_PYTHON, --work DIR"),
            Benchmark("steer_cost", ("--work", "runs/steer-cost")),
        ),
        verb=Verb(
            name="steer",
            settings="burnish.steer.stage:Steer",
            help="Find the heads that tell checking from going on, and write a steering file.",
            examples=(
                "burnish steer calibrate models/mine --traces traces.jsonl -o vectors",
                'burnish steer calibrate models/mine --problems problems.jsonl --separator ";" -o vectors',
            ),
            command="steer calibrate",
            makes="steering file",
            function="steer:calibrate",
        ),
    ),
    Method(
        name="population",
        does="members with skills evolve on problems to learn from, and unseen problems decide who is best",
        use="burnish reason evolve",
        source="response thresholds: Bonabeau, Theraulaz, Deneubourg, 1996; trails: Stuetzle, Hoos, 2000; form ours",
        page="population",
        benchmarks=(Benchmark("reason_population", ("--work", "runs/reason-tiny"), needs="models of reason_tiny"),),
    ),
    Method(
        name="serving simulator",
        does="vLLM's scheduler on a virtual clock: what another policy would have done with a trace, to the nanosecond",
        use="burnish serve sim",
        source="ours; scheduling as in vLLM 0.32",
        page="simulator",
        benchmarks=(
            Benchmark("serve_speed", needs="--data DIR with the Mooncake traces"),
            Benchmark("serve_engine", ("--work", "runs/serve-engine"), needs="--data DIR likewise, and VLLM_PYTHON"),
            Benchmark("serve_dynosim", needs="--data DIR likewise, and DYNAMO_PYTHON with ai-dynamo"),
        ),
    ),
    Method(
        name="fair shares",
        does="tenants in a tree of weights, charged by uncached tokens; VTC is its one level of equal weights",
        use="burnish serve sim --policy shares",
        source="VTC, 2024, arXiv:2401.00588; DLPM, 2025, arXiv:2501.14312; the tree is ours",
        page="fair-scheduling",
        benchmarks=(
            Benchmark(
                "serve_light",
                ("--work", "runs/serve-light"),
                needs="--data DIR with the Mooncake traces, and VLLM_PYTHON",
            ),
        ),
    ),
    Method(
        name="workflow scheduling",
        does="turns of agents as one unit, their contexts kept through tool calls for as long as that pays",
        use="burnish serve sim --policy programs",
        source="Continuum, 2025, arXiv:2511.02230; Autellix, 2025, arXiv:2502.13965; order and growth rule ours",
        page="programs",
        benchmarks=(
            Benchmark("serve_programs", ("--work", "runs/serve-programs", "--minutes", "30")),
            Benchmark("serve_holds", ("--work", "runs/serve-holds", "--minutes", "30")),
        ),
    ),
    Method(
        name="Schemble",
        does="each query of an ensemble gets the models that its difficulty asks for and its deadline leaves room for",
        use="burnish.serve.Schemble",
        source="Li et al., ICDE 2023, doi:10.1109/ICDE55515.2023.00082, from its abstract",
        page="schemble",
        benchmarks=(Benchmark("serve_ensemble"), Benchmark("serve_endpoints", ("--work", "runs/serve-endpoints"))),
    ),
)

BESIDE_METHODS = (
    Benchmark("reason_proxy"),
    Benchmark("demo", ("--work", "runs/demo-benchmark")),
    Benchmark("foundation", ("--work", "runs/foundation-benchmark")),
    Benchmark("fingerprint"),
    Benchmark("reason_client"),
)
"""What is measured of the package itself: the README's first command, the runner, the bits of every stage."""

VERBS: dict[str, Verb] = {method.verb.name: method.verb for method in METHODS if method.verb}

OPTIMIZER_CLASSES: dict[str, str] = {method.page: method.optimizer for method in METHODS if method.optimizer} | {
    "adamw": "burnish.optim.optimizer:AdamW"
}
"""Optimizers by name. AdamW has no row: it is what every other one does with what is no matrix."""

BENCHMARKS: dict[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmarks in (*(method.benchmarks for method in METHODS), BESIDE_METHODS)
    for benchmark in benchmarks
}
