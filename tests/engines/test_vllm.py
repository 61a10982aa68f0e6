"""vLLM reads what burnish writes: the tokens of its greedy search are those of the dequantized weights in transformers.

Compared in float32, where both engines' rounding is far below the gap between the first two tokens. In bfloat16 two
correct engines part company as soon as two tokens are nearly tied, which a random model's are every few steps.
"""

import copy
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoModelForCausalLM

from burnish.convert.stage import LadderResidual, LatentAttention, SwiftKV
from burnish.core.checkpoint import Model, load
from burnish.data import read_texts, windows
from burnish.quantize.stage import Quantize
from burnish.slim.stage import Slim
from small_models import make, small_llama, small_tokenizer

NUM_TOKENS = 24
PROMPTS = [[1, 5, 9, 33], [7, 8, 100, 200, 300]]
DOWN, QKV, GATE_UP = "re:.*down_proj", "re:.*(q|k|v)_proj", "re:.*(gate|up)_proj"

PACKED = {
    "symmetric": {"group_size": 32},
    "asymmetric": {"group_size": 32, "symmetric": False},
    "one scale per row": {"group_size": None},
    "joined groups of their own": {
        "group_size": 32,
        "overrides": {QKV: {"group_size": 64}, GATE_UP: {"symmetric": False}},
    },
    "dense beside packed": {"group_size": 32, "ignore": (DOWN, QKV)},
}
ROUNDED_ACTIVATIONS = {
    "w8a8-int8": {"scheme": "w8a8-int8"},
    "fp8-dynamic": {"scheme": "fp8-dynamic"},
    "packed and int8": {"group_size": 32, "overrides": {GATE_UP: {"scheme": "w8a8-int8"}}},
}
MIXTURES = {
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 128},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2, "intermediate_size": 128},
}
CUTS = {
    "narrow": {"width": 64, "score": "magnitude"},
    "fewer heads": {"width": 64, "num_key_value_heads": 1, "score": "magnitude"},
    "fewer experts": {"method": "drop", "num_experts": 2, "score": "magnitude"},
    "pieces": {"method": "split", "num_experts": 6, "tokens": 512, "length": 64, "refit": "none"},
}
SCORED = [" ".join(f"{number} is not {number * number % 97}" for number in range(600))]
SLIMMED = {
    f"{name}, {cut}": (name, cut) for name in MIXTURES for cut in CUTS if (name, cut) != ("Olmoe", "fewer heads")
}
"""OLMoE's norms span all heads, so that burnish refuses to cut them."""


def random_model() -> Model:
    """Weights wide enough that greedy search wanders over the vocabulary and does not repeat one token."""
    module = small_llama(hidden_size=128, intermediate_size=256, tie_word_embeddings=False, initializer_range=0.2)
    return Model(module=module, tokenizer=small_tokenizer())


def slimmed_model(name: str, cut: str) -> Model:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=512,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        **MIXTURES[name],
    )
    mixture = Model(module=getattr(transformers, f"{name}ForCausalLM")(config).eval(), tokenizer=small_tokenizer())
    return Slim(multiple=32, **CUTS[cut])(mixture, calibration=SCORED)


def in_vllm(directory: Path, jobs: list[dict], **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs `generate.py` with vLLM's interpreter; results.json in `directory` has its answer.

    Args:
        directory: for questions and answers.
        jobs: of `generate.py`.
        variables: of its environment.
    """
    (directory / "jobs.json").write_text(json.dumps(jobs))
    script = Path(__file__).with_name("generate.py")
    command = [os.environ["VLLM_PYTHON"], str(script), str(directory / "jobs.json"), str(directory / "results.json")]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | variables
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=3000, check=False)


def job(directory: Path, prompts: list[list[int]] = PROMPTS) -> dict:
    return {"model": str(directory), "dtype": "float32", "prompts": prompts, "num_tokens": NUM_TOKENS}


def greedy(module, prompt: list[int]) -> list[int]:
    with torch.no_grad():
        tokens = module.generate(
            torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0
        )
    return tokens[0, len(prompt) :].tolist()


def smollm2_directory() -> Path | None:
    directory = Path(__file__).resolve().parents[2] / "models" / "smollm2"
    return directory if (directory / "burnish.json").is_file() else None


@pytest.fixture(scope="module")
def generated(tmp_path_factory):
    """{name: (dense module, checkpoint, outputs of vLLM)}; all checkpoints go through one process of vLLM."""
    directory = tmp_path_factory.mktemp("engines")
    found, jobs = {}, []
    for name, settings in (PACKED | ROUNDED_ACTIVATIONS).items():
        quantized = Quantize(method="rtn", **settings)(random_model())
        target = quantized.save(directory / name)
        found[name] = (quantized.module, target)
        jobs.append(job(target))
    for name, (mixture, cut) in SLIMMED.items():
        slimmed = slimmed_model(mixture, cut)
        target = slimmed.save(directory / name)
        found[name] = (slimmed.module, target)
        jobs.append(job(target))
    if smollm2_directory():
        model = load(smollm2_directory(), dtype=torch.float32)
        quantized = Quantize(method="rtn", bits=4, group_size=64)(model)
        target = quantized.save(directory / "smollm2")
        found["smollm2"] = (quantized.module, target)
        jobs.append(job(target, [model.tokenizer("The capital of France is").input_ids]))
    process = in_vllm(directory, jobs)
    assert process.returncode == 0, process.stderr[-4000:]
    results = json.loads((directory / "results.json").read_text())
    print(f"vLLM {results['vllm']}, packed weights through {results['packed_kernel']} kernel")
    return {name: (*parts, outputs) for (name, parts), outputs in zip(found.items(), results["outputs"], strict=True)}


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", [*PACKED, *SLIMMED])
def test_greedy_tokens_are_those_of_the_same_weights_in_transformers(generated, name):
    module, _, outputs = generated[name]
    tokens = [output["tokens"] for output in outputs]
    assert tokens == [greedy(module, prompt) for prompt in PROMPTS]
    assert len(set(tokens[0])) > NUM_TOKENS // 3  # a sequence that could have gone wrong


def int8_products_saturate() -> bool:
    """Without VNNI the library under vLLM adds pairs of int8 products in 16 bits, which overflow for codes above 64."""
    return "vnni" not in Path("/proc/cpuinfo").read_text()


@pytest.mark.parametrize("name", ROUNDED_ACTIVATIONS)
def test_rounded_activations_are_off_by_no_more_than_in_transformers(generated, name):
    """The engines' rounding of activations differs in detail (127 or 127.5 steps), so distances are compared.

    Both are measured from the dense module, on log-probabilities of the first generated token. Twice the distance that
    transformers has leaves room for chance: one token, two prompts; a wrong scale is off by far more.
    """
    if "int8" in name and int8_products_saturate():
        pytest.skip("vLLM's int8 products saturate on a processor without VNNI")
    module, directory, outputs = generated[name]
    stock = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        tokens = [int(token) for token in output["first_logprobs"]]
        with torch.no_grad():
            dense, rounded = (
                network(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)[tokens] for network in (module, stock)
            )
        engine = torch.tensor(list(output["first_logprobs"].values()))
        assert 0 < float((engine - dense).norm()) < 2 * float((rounded - dense).norm())


def test_the_real_model_at_four_bits_gives_the_same_tokens(generated):
    if "smollm2" not in generated:
        pytest.skip("the embedded model is not here; run `burnish fetch smollm2 --out models/smollm2`")
    module, directory, (output,) = generated["smollm2"]
    prompt = load(directory).tokenizer("The capital of France is").input_ids
    assert output["tokens"] == greedy(module, prompt)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("bits", "reason"), [(3, "uint3b4"), (8, "uint8b128")])
def test_what_engine_vllm_cpu_refuses_has_no_kernel_there(tmp_path, bits, reason):
    """The refusal in `check_engine` states a fact about vLLM; here vLLM says so itself."""
    quantized = Quantize(method="rtn", bits=bits, group_size=32)(random_model())
    process = in_vllm(tmp_path, [job(quantized.save(tmp_path / "model"))])
    assert process.returncode != 0
    assert "Failed to find a kernel" in process.stderr + process.stdout and reason in process.stderr + process.stdout


# -- latent attention --------------------------------------------------------------------------------------------------

TEXT = Path(__file__).resolve().parents[2] / "LICENSE"


def latent_model(rank: int, rope_dim: int) -> Model:
    """Ten query and five key heads of 64, tied, so that a latent of 512 + 64 is below full rank."""
    shape = {"num_attention_heads": 10, "num_key_value_heads": 5, "head_dim": 64, "initializer_range": 0.2}
    source = Model(module=small_llama(hidden_size=160, intermediate_size=256, **shape), tokenizer=small_tokenizer())
    stage = LatentAttention(tokens=2048, length=64, rank=rank, rope_dim=rope_dim)
    return stage(source, calibration=[TEXT.read_text()])


@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("rank", "rope_dim", "disabled"), [(512, 64, "0"), (512, 64, "1"), (96, 32, "1")], ids=["kernel", "512", "96"]
)
def test_latent_attention_gives_the_same_tokens(tmp_path, rank, rope_dim, disabled):
    """With vLLM's kernel for latents, which on CPUs knows 512 + 64 alone, and with expanded keys and values."""
    made = latent_model(rank=rank, rope_dim=rope_dim)
    work = job(made.save(tmp_path / "model"))
    if disabled == "0":  # a processor with AMX would take the kernel that knows bfloat16 alone
        work["engine"] = {"attention_backend": "CPU_MLA"}
    process = in_vllm(tmp_path, [work], VLLM_MLA_DISABLE=disabled)
    assert process.returncode == 0, process.stderr[-4000:]
    (outputs,) = json.loads((tmp_path / "results.json").read_text())["outputs"]
    assert [output["tokens"] for output in outputs] == [greedy(made.module, prompt) for prompt in PROMPTS]


def padded(model: Model) -> Model:
    """The same function with 512 + 64 cached numbers, which is what vLLM's kernel for CPUs takes.

    Channels that are zero are added: to the latent, whose norm then is of the mean over 512, and as slots behind those
    of the grid, whose base is such that the first ones stay.
    """
    config = copy.deepcopy(model.config)
    rank, slots, width = config.kv_lora_rank, config.qk_rope_head_dim // 2, config.qk_nope_head_dim
    config.kv_lora_rank, config.qk_rope_head_dim = 512, 64
    config.qk_head_dim, config.head_dim = width + 64, 64
    config.rope_parameters["rope_theta"] **= 32 / slots
    wide = transformers.DeepseekV3ForCausalLM(config).eval()
    tensors = model.module.state_dict()
    for name, tensor in tensors.items():
        if name.endswith("q_proj.weight"):
            heads = tensor.unflatten(0, (-1, width + 2 * slots)) * ((width + 64) / (width + 2 * slots)) ** 0.5
            tensors[name] = functional.pad(heads, (0, 0, 0, 64 - 2 * slots)).flatten(0, 1)
        elif name.endswith("kv_a_proj_with_mqa.weight"):
            latent, turning = tensor[:rank], tensor[rank:]
            zeros = [tensor.new_zeros(size, tensor.shape[1]) for size in (512 - rank, 64 - 2 * slots)]
            tensors[name] = torch.cat([latent, zeros[0], turning, zeros[1]])
        elif name.endswith("kv_a_layernorm.weight"):
            tensors[name] = functional.pad(tensor * (rank / 512) ** 0.5, (0, 512 - rank))
        elif name.endswith("kv_b_proj.weight"):
            tensors[name] = functional.pad(tensor, (0, 512 - rank))
    wide.load_state_dict(tensors)
    return Model(module=wide, tokenizer=model.tokenizer)


@pytest.mark.timeout(3600)
def test_smollm2_with_half_of_its_cache_gives_the_same_tokens_dense_padded_and_packed(tmp_path):
    """Twenty prompts of 32 tokens, 32 tokens behind each."""
    if not smollm2_directory():
        pytest.skip("the embedded model is not here; run `burnish fetch smollm2 --out models/smollm2`")
    source = load(smollm2_directory(), dtype=torch.float32)
    stage = LatentAttention(rank=144, rope_dim=48, tokens=2048, length=256, sequential=False)
    made = stage(source)
    packed = Quantize(method="rtn", bits=4, group_size=64, engine="vllm", ignore=["re:.*kv_b_proj"])(made)
    prompts = windows(source.tokenizer, read_texts("wikitext2-test"), 32, max_tokens=20 * 32).tolist()
    wide = padded(made)
    work = [job(model.save(tmp_path / name), prompts) for name, model in (("dense", made), ("packed", packed))]
    process = in_vllm(tmp_path, [one | {"num_tokens": 32} for one in work], VLLM_MLA_DISABLE="1")
    assert process.returncode == 0, process.stderr[-4000:]
    expanded = json.loads((tmp_path / "results.json").read_text())["outputs"]
    kernel = job(wide.save(tmp_path / "padded"), prompts) | {"num_tokens": 32}
    process = in_vllm(tmp_path, [kernel | {"engine": {"attention_backend": "CPU_MLA"}}], VLLM_MLA_DISABLE="0")
    assert process.returncode == 0, process.stderr[-4000:]
    outputs = [*expanded, *json.loads((tmp_path / "results.json").read_text())["outputs"]]
    for model, found in zip((made, packed, wide), outputs, strict=True):
        with torch.no_grad():
            tokens = model.module.generate(
                torch.tensor(prompts), max_new_tokens=32, do_sample=False, eos_token_id=None, pad_token_id=0
            )
        assert [output["tokens"] for output in found] == tokens[:, 32:].tolist()
    assert outputs[0] != outputs[1]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("trap", ["head", "unscaled"])
def test_the_naive_form_of_latent_attention_answers_nonsense(tmp_path, trap):
    """What the form for vLLM avoids: it loads without a word. Should vLLM mend it, this fails, and the page changes."""
    made = latent_model(rank=96, rope_dim=32)
    directory = made.save(tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    if trap == "head":
        stored = load_file(directory / "model.safetensors")
        del stored["lm_head.weight"]
        save_file(stored, directory / "model.safetensors", metadata={"format": "pt"})
        config["tie_word_embeddings"] = True
    else:
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_parameters"]["rope_theta"]}
    (directory / "config.json").write_text(json.dumps(config))
    process = in_vllm(tmp_path, [job(directory)], VLLM_MLA_DISABLE="1")
    assert process.returncode == 0, process.stderr[-4000:]
    (outputs,) = json.loads((tmp_path / "results.json").read_text())["outputs"]
    assert [output["tokens"] for output in outputs] != [greedy(made.module, prompt) for prompt in PROMPTS]


# -- classes of our own ------------------------------------------------------------------------------------------------

OWN = {
    "ladder": LadderResidual(layers="last:3", custom_code=True, tokens=64, length=64),
    "swiftkv": SwiftKV(from_layer=1, custom_code=True),
}


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_class_of_our_own_gives_the_same_tokens_to_who_runs_its_code_and_nothing_to_others(tmp_path, kind, name):
    shape = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
    source = make(kind, num_hidden_layers=4, initializer_range=0.3, disturbed=True, **shape)
    inputs = {"calibration": [TEXT.read_text()]} if name == "ladder" else {}
    made = OWN[name](Model(module=source, tokenizer=small_tokenizer()), **inputs)
    work = job(made.save(tmp_path / "model"))
    process = in_vllm(tmp_path, [work | {"engine": {"trust_remote_code": True}}])
    assert process.returncode == 0, process.stderr[-4000:]
    (outputs,) = json.loads((tmp_path / "results.json").read_text())["outputs"]
    expected = [greedy(made.module, prompt) for prompt in PROMPTS]
    assert [output["tokens"] for output in outputs] == expected != [greedy(source, prompt) for prompt in PROMPTS]
    process = in_vllm(tmp_path, [work])
    assert process.returncode and "trust_remote_code=True" in process.stderr
