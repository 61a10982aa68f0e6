"""Speed in vLLM itself, on models too small for a rate to mean anything: what is measured, named and refused."""

import os
from pathlib import Path

import pytest

from burnish.core.checkpoint import Model
from burnish.evaluate import Evaluate
from burnish.quantize.stage import Quantize
from small_models import small_llama, small_tokenizer

SETTINGS = Evaluate(
    engine="vllm", engine_batches=(1, 3), engine_contexts=(16, 48), engine_rounds=2, decode_tokens=6
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    directory = tmp_path_factory.mktemp("speed")
    module = small_llama(hidden_size=128, intermediate_size=256, tie_word_embeddings=False)
    model = Model(module=module.bfloat16(), tokenizer=small_tokenizer())
    found = {"start": model.save(directory / "start")}
    for name, settings in {"4 bits": {}, "3 bits": {"bits": 3}, "int8": {"scheme": "w8a8-int8"}}.items():
        group = {} if "scheme" in settings else {"group_size": 32}
        found[name] = Quantize(method="rtn", **settings, **group)(model).save(directory / name.replace(" ", "-"))
    return found


@pytest.mark.timeout(1800)  # four engines start
def test_every_form_is_timed_by_its_own_kernel_and_one_without_is_a_note(places: dict[str, Path]):
    found = SETTINGS.together(places)
    assert found["start"].protocol["engine"].startswith("vLLM 0.32")
    assert found["start"].facts["kernels"] == []
    assert found["int8"].facts["kernels"] == ["CPUInt8ScaledMMLinearKernel"]
    packed = found["4 bits"]
    if packed.sequences:
        assert packed.facts["kernels"] == ["CPUWNA16LinearKernel"]
    else:
        assert "AVX-512" in packed.metrics["decode_speed@1x16"]["note"]
    for name in ("start", "int8"):
        one = found[name]
        assert one.facts["dtype"] == "bfloat16"
        for shape in ("1x16", "3x16", "1x48"):
            assert len(one.sequences[f"decode@{shape}"]) == 2
            assert one.metrics[f"decode_speed@{shape}"]["value"] > 0
            assert one.metrics[f"wall_over_cpu@{shape}"]["value"] > 0.5
        assert one.metrics["engine_peak_memory"]["value"] > 200e6
    assert not found["3 bits"].sequences
    assert found["3 bits"].metrics["decode_speed@1x16"]["value"] is None


@pytest.mark.skipif(not os.environ.get("LLAMA_PYTHON"), reason="LLAMA_PYTHON names no environment")
def test_llama_cpp_is_timed_on_exported_files(places: dict[str, Path]):
    pytest.importorskip("gguf")
    settings = SETTINGS.model_copy(update={"engine": "llama.cpp", "decode_tokens": 96})
    found = settings.together({name: places[name] for name in ("start", "4 bits")})
    assert "Q4_0" in found["4 bits"].facts["file"]
    for one in found.values():
        assert one.metrics["decode_speed@3x16"]["value"] > 0
