"""`burnish kv-cache`, from text to a cache that generates."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

import burnish
from burnish.cli import main
from burnish.core.errors import CheckpointError, SettingsError
from burnish.quantize.cache import CodedCache, read_fitted
from small_models import PROSE, small_llama, small_tokenizer


def run(model: Path, out: Path, **changes: str) -> None:
    """The command at its smallest, on two halves of a text."""
    halves = {"data": PROSE.read_text()[:6000], "text": PROSE.read_text()[6000:]}
    for name, half in halves.items():
        out.with_name(f"{name}.txt").write_text(half)
    options = {name: str(out.with_name(f"{name}.txt")) for name in halves}
    options |= {"codes": "rotated:3,lexico:3,int4", "atoms": "48", "context": "48", "tokens": "512", "windows": "3"}
    main(
        ["kv-cache", str(model), *(f"--{name}={value}" for name, value in (options | changes).items()), "-o", str(out)]
    )


@pytest.fixture(scope="module")
def cache(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("kv") / "cache"
    run(tiny_llama, directory)
    return directory


def test_the_table_says_bytes_errors_and_divergence_of_every_code(cache: Path):
    rows = json.loads((cache / "codes.json").read_text())["table"]
    assert [row["code"] for row in rows] == ["rotated:3", "lexico:3", "int4"]
    by_code = {row["code"]: row for row in rows}
    # Two heads of 16 numbers, a key and a value of each: 4 vectors a token.
    assert by_code["rotated:3"]["parts"] == {"codes": 4 * 6, "scale": 4 * 2}
    assert by_code["lexico:3"]["parts"] == {"atoms": 4 * 6, "coefficients": 4 * 3, "scale": 4 * 2}
    assert by_code["int4"]["bytes"] == 4 * (8 + 4)
    assert by_code["int4"]["share"] == 48 / 128
    assert by_code["int4"]["kl"] < by_code["rotated:3"]["kl"] < by_code["lexico:3"]["kl"]
    assert by_code["int4"]["keys_error"] < by_code["rotated:3"]["keys_error"] < 0.25
    assert by_code["rotated:3"]["change"] == 0 < by_code["lexico:3"]["change"]
    assert not cache.with_name("cache.fitting").exists()


def test_what_was_written_is_a_cache_for_generate(cache: Path, tiny_llama: Path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    ids = torch.randint(1, 384, (1, 40), generator=torch.Generator().manual_seed(0))
    kept = CodedCache.load(cache, "int4", model, buffer=4)
    found = model.generate(ids, past_key_values=kept, max_new_tokens=8, do_sample=False)
    assert found.shape == (1, 48)
    assert kept.layers[0].num_coded == 47 - 4
    with pytest.raises(SettingsError, match="more atoms"):
        CodedCache.load(cache, "lexico:49", model)


def test_another_model_is_refused_by_its_weights_or_its_layers(cache: Path, tmp_path: Path):
    small_llama(seed=1).save_pretrained(tmp_path)
    small_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="another model"):
        CodedCache.load(cache, "int4", AutoModelForCausalLM.from_pretrained(tmp_path))
    with pytest.raises(CheckpointError, match="of 2 layers with 2 heads of 16 numbers, and this model has 3"):
        CodedCache.load(cache, "int4", small_llama(num_hidden_layers=3))


def test_a_damaged_or_missing_file_is_refused(cache: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"has no codes\.json"):
        read_fitted(tmp_path)
    (tmp_path / "codes.json").write_text((cache / "codes.json").read_text())
    (tmp_path / "codes.safetensors").write_bytes((cache / "codes.safetensors").read_bytes()[:500])
    with pytest.raises(CheckpointError, match="is damaged"):
        read_fitted(tmp_path)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("codes", "rotated:9", "there is no code 'rotated:9'"),
        ("context", "250", "281 with what follows, and the model has positions for 256"),
        ("buffer", "48", "nothing of 48 tokens would be coded"),
        ("atoms", "30000", "fewer than the 30,000 atoms"),
        ("atoms", "32769", "Must be <= 32768"),  # what is stored of an atom is a number in int16
        ("codes", "int3:0", "there is no code 'int3:0'"),
        ("windows", "1000", "windows of 54 tokens, and 1000 are asked for"),
        ("text", "wikitext2-valid", "shares 1 of its texts"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, value: str, said: str
):
    more = {"data": "wikitext2-valid"} if option == "text" else {}
    with pytest.raises(SystemExit):
        run(tiny_llama, tmp_path / "cache", **{option: value}, **more)
    assert said in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_code_that_does_not_fit_is_refused_before_dictionaries_are_learned(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for codes, said in (("lexico:3,int3:5", "do not fall into groups of 5"), ("lexico:49", "more atoms than 48")):
        with pytest.raises(SystemExit):
            run(tiny_llama, tmp_path / "cache", codes=codes)
        assert said in capsys.readouterr().err
        assert not (tmp_path / "cache.fitting").exists()


def test_codes_take_the_place_of_codes_alone(tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    burnish.load(tiny_llama).save(tmp_path / "cache")
    with pytest.raises(SystemExit):
        main(["kv-cache", str(tiny_llama), "--overwrite", "-o", str(tmp_path / "cache")])
    assert "is of kind causal-lm, and what is to replace it of kind dictionary" in capsys.readouterr().err
    assert (tmp_path / "cache" / "config.json").is_file()
