from pathlib import Path

import pytest

from burnish.cli import main
from burnish.core.checkpoint import Model, load
from burnish.core.errors import CheckpointError, EngineError, SettingsError
from burnish.evaluate.engines.machine import (
    ROWS,
    KernelTime,
    Products,
    bandwidth,
    foretold_rate,
    product_seconds,
    products,
    speedup,
    time_kernels,
)
from burnish.quantize.stage import Quantize
from engine_double import environment
from small_models import make

LAYER, ODD, HEAD = (8, 4), (6, 4), (100, 4)
USED = Products({LAYER: 10, ODD: 2}, HEAD)
KERNELS = [
    *(KernelTime("bfloat16", shape, 1, seconds, 1) for shape, seconds in ((LAYER, 0.01), (ODD, 0.02), (HEAD, 0.06))),
    *(KernelTime("w4a16", shape, 1, seconds, 1) for shape, seconds in ((LAYER, 0.02), (HEAD, 0.01))),
]


def test_shapes_without_a_kernel_and_the_head_stay_dense():
    assert product_seconds(KERNELS, USED, "bfloat16", 1) == pytest.approx(10 * 0.01 + 2 * 0.02 + 0.06)
    assert product_seconds(KERNELS, USED, "w4a16", 1) == pytest.approx(10 * 0.02 + 2 * 0.02 + 0.06)
    assert speedup(KERNELS, LAYER, "w4a16", 1) == 0.5
    assert speedup(KERNELS, ODD, "w4a16", 1) is None


def test_what_is_no_product_takes_as_long_in_every_format():
    # Dense: 0.2 s of products, 0.3 s of all else, so 2 tokens/s; packed: 0.3 + 0.3.
    assert foretold_rate(KERNELS, USED, "bfloat16", 1, measured_dense=2.0) == pytest.approx(2.0)
    assert foretold_rate(KERNELS, USED, "w4a16", 1, measured_dense=2.0) == pytest.approx(1 / 0.6)


def test_matrices_are_those_that_vllm_joins(tiny_llama: Path):
    found = products(load(tiny_llama))
    config = load(tiny_llama).config
    width, inner = config.hidden_size, config.intermediate_size
    keys = config.num_key_value_heads * config.head_dim
    layers = config.num_hidden_layers
    expected = {(width + 2 * keys, width): layers, (width, width): layers}
    expected |= {(2 * inner, width): layers, (width, inner): layers}
    assert found.counts == expected
    assert found.head == (config.vocab_size, width)


def test_products_of_a_mixture_are_refused():
    with pytest.raises(SettingsError, match="mixture of experts"):
        products(Model(module=make("mixtral")))


def test_copying_moves_more_bytes_than_are_read():
    found = bandwidth(num_bytes=8 << 20, rounds=2)
    assert 1e8 < found.read < 1e12
    assert 1e8 < found.copy < 1e12


def test_products_that_cannot_be_timed_end_in_the_last_words(tmp_path: Path):
    with pytest.raises(EngineError, match=r"kernels cannot be timed .*Error.*scripts/vllm-env"):
        time_kernels(environment(tmp_path), [LAYER])


def answering(place: Path) -> Path:
    """An environment whose kernels are timed without a kernel: int8 twice as fast, packed 4 bits half."""
    script = place / "answers.py"
    script.write_text(
        "import json, sys\n"
        "asked = json.loads(sys.argv[1])\n"
        "speeds = {'bfloat16': 1e-6, 'w8a8-int8': 5e-7, 'w4a16': 2e-6}\n"
        "print('a warning')\n"
        "print(json.dumps({'kernels': [{'format': f, 'out': n, 'in': k, 'rows': m, 'seconds': s * n * k * m**.5,\n"
        "  'bytes': n * k} for n, k in asked['shapes'] for m in asked['rows'] for f, s in speeds.items()]}))\n"
    )
    python = environment(place / "environment")
    instead = f'case "$1" in *kernels_worker.py) shift; set -- {script} "$@";; esac'
    python.write_text(python.read_text().replace("#!/bin/sh", f"#!/bin/sh\n{instead}"))
    return python


def test_doctor_says_which_format_pays(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    main(["doctor", "--speed", "--engine-python", str(answering(tmp_path))])
    text = capsys.readouterr().out
    assert "GB/s" in text
    assert f"{ROWS[-1]} rows: w8a8-int8 pays (2.00 to 2.00), w4a16 is slower (0.50 to 0.50)" in text


def test_doctor_foretells_the_decoding_of_a_checkpoint(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    main(["doctor", "--speed", "--engine-python", str(answering(tmp_path)), "--model", str(tiny_llama)])
    text = capsys.readouterr().out
    line = next(line for line in text.splitlines() if line.startswith("1 at a time: bfloat16"))
    assert "measured" in line and "w8a8-int8" in line and "foretold" in line
    assert "allows" in text


def test_doctor_without_an_environment_says_how_to_make_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("VLLM_PYTHON", raising=False)
    main(["doctor", "--speed"])
    text = capsys.readouterr().out
    assert "memory, 1 thread: reads" in text
    assert "scripts/vllm-env" in text


def test_a_packed_checkpoint_has_no_dense_weights_to_compare_with(tiny_llama: Path, tmp_path: Path):
    from burnish.cli.doctor_speed import doctor_speed

    packed = Quantize(method="rtn", group_size=32)(load(tiny_llama)).save(tmp_path / "packed")
    with pytest.raises(CheckpointError, match="is packed"):
        doctor_speed(str(packed), str(environment(tmp_path / "environment")))


def test_a_checkpoint_without_room_for_the_measurement_is_refused_before_it(tmp_path: Path, monkeypatch):
    import small_models
    from burnish.cli import doctor_speed

    small_models.make("llama", max_position_embeddings=64).save_pretrained(tmp_path / "short")
    small_models.small_tokenizer().save_pretrained(tmp_path / "short")
    monkeypatch.setattr("burnish.evaluate.engines.machine.bandwidth", lambda: pytest.fail("it began to measure"))
    with pytest.raises(CheckpointError, match="positions for 64 tokens, and decoding is measured up to 145"):
        doctor_speed.doctor_speed(str(tmp_path / "short"), str(environment(tmp_path / "environment")))


def test_a_model_without_speed_is_refused():
    from burnish.cli.doctor import doctor

    with pytest.raises(SettingsError, match="--model: is for the speed of this machine; add --speed"):
        doctor(model="somewhere")
