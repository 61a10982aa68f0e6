"""Greedy tokens of vLLM: `python generate.py JOBS.json RESULTS.json`, run by the interpreter of vLLM's environment.

It knows nothing of burnish: a checkpoint goes in as any user would give it. Jobs are a list of {model, dtype, prompts,
num_tokens} and, where wanted, `engine`, further arguments of vLLM's; prompts are lists of token ids. The engine runs
inside this process and ends with it.

vLLM's wheel for CPUs has its kernel for packed 4-bit weights in the AVX-512 build only; elsewhere it chooses that
kernel and fails at the first product. There a plain product with the unpacked weights takes its place, through vLLM's
own registry; all else (reading, matching of names to schemes, joining q, k, v and gate, up) is vLLM's. The results say
which kernel ran.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "TORCHDYNAMO_DISABLE": "1",  # a few tokens are not worth the minutes that compiling takes
}


TOP = 20
"""Log-probabilities asked for: as many as vLLM gives without being told otherwise."""


def register_plain_kernel() -> None:
    """Puts the unpacked product in the place of vLLM's kernel for packed 4-bit weights on CPUs."""
    import torch
    from vllm.model_executor.kernels.linear import MPLinearKernel, register_linear_kernel
    from vllm.model_executor.layers.quantization.utils.quant_utils import unpack_quantized_values_into_int32
    from vllm.platforms.interface import PlatformEnum
    from vllm.scalar_type import scalar_types

    class PlainWNA16LinearKernel(MPLinearKernel):
        @classmethod
        def get_min_capability(cls):
            return -1

        @classmethod
        def can_implement(cls, c):
            known = (scalar_types.uint4, scalar_types.uint4b8)
            return c.weight_type in known, f"only for 4 bits, as vLLM's own kernel for CPUs, not {c.weight_type}"

        def process_weights_after_loading(self, layer):
            packed, scale, packed_zero = self._get_weight_params(layer)
            kind = self.config.weight_type
            codes = unpack_quantized_values_into_int32(packed.data, kind, packed_dim=1)
            zero = 8
            if self.config.zero_points:
                zero = unpack_quantized_values_into_int32(packed_zero.data, kind, packed_dim=0)
                zero = zero.repeat_interleave(codes.shape[1] // zero.shape[1], dim=1)
            spread = scale.data.repeat_interleave(codes.shape[1] // scale.shape[1], dim=1)
            layer.plain_weight = (codes - zero).to(self.config.act_type) * spread

        def apply_weights(self, layer, x, bias=None):
            return torch.nn.functional.linear(x, layer.plain_weight, bias)

    os.environ["VLLM_DISABLED_KERNELS"] = "CPUWNA16LinearKernel"
    register_linear_kernel(PlainWNA16LinearKernel, PlatformEnum.CPU, "mp")


def _output(sequence) -> dict:
    """Tokens, and the first one's rivals with their log-probabilities."""
    first = {str(token): entry.logprob for token, entry in sequence.logprobs[0].items()}
    return {"tokens": list(sequence.token_ids), "first_logprobs": first}


def main(jobs_file: str, results_file: str) -> None:
    import torch
    import vllm
    from vllm import LLM, SamplingParams

    packed_kernel = "vLLM's"
    if not hasattr(torch.ops._C, "cpu_gemm_wna16"):
        register_plain_kernel()
        packed_kernel = "plain product"
    outputs = []
    for job in json.loads(Path(jobs_file).read_text()):
        engine = LLM(
            model=job["model"],
            dtype=job["dtype"],
            max_model_len=128,
            max_num_seqs=4,
            enforce_eager=True,
            kv_cache_memory_bytes=64 * 2**20,
            **job.get("engine", {}),
        )
        sampling = SamplingParams(temperature=0.0, max_tokens=job["num_tokens"], ignore_eos=True, logprobs=TOP)
        prompts = [{"prompt_token_ids": ids} for ids in job["prompts"]]
        generated = engine.generate(prompts, sampling, use_tqdm=False)
        outputs.append([_output(sequence.outputs[0]) for sequence in generated])
        del engine
        gc.collect()
    results = {"vllm": vllm.__version__, "packed_kernel": packed_kernel, "outputs": outputs}
    Path(results_file).write_text(json.dumps(results))


if __name__ == "__main__":
    main(*sys.argv[1:])
