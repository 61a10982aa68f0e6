"""What is rounded outside of the decoder layers: the embedding, and a head that is tied to it or not."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from burnish.arch import matrices
from burnish.calibrate.vocabulary import VocabularyStatistics
from burnish.convert.stage import Unpack
from burnish.core.checkpoint import load, read_safetensors_header
from burnish.core.errors import CheckpointError, EngineError, SettingsError
from burnish.core.ledger import Ledger
from burnish.core.progress import Progress
from burnish.core.stage import Context, seeded_generator
from burnish.quantize.mixed import Mixing
from burnish.quantize.outside import outside_of
from burnish.quantize.plan import matrices_of
from burnish.quantize.stage import Quantize
from burnish.quantize.tuning import Original
from burnish.quantize.vocabulary import VocabularyRounding
from small_models import small_llama, small_tokenizer

NEAREST = {"method": "rtn", "bits": 3, "group_size": 32}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def either(request, tmp_path):
    small_llama(tie_word_embeddings=request.param).save_pretrained(tmp_path / "dense")
    small_tokenizer().save_pretrained(tmp_path / "dense")
    return load(tmp_path / "dense")


def logits(model, ids):
    with torch.no_grad():
        return model.module(input_ids=ids).logits


@pytest.mark.parametrize("bits", [3, 8], ids=["of the layers", "its own"])
def test_a_packed_embedding_is_read_as_it_was_rounded(either, ids, tmp_path, bits):
    stage = Quantize(**NEAREST, quantize_embedding=bits)
    quantized = stage(either)
    quantized.save(tmp_path / "out")
    read = load(tmp_path / "out")
    torch.testing.assert_close(logits(read, ids), logits(quantized, ids), rtol=0, atol=0)
    now, before = (one.module.get_input_embeddings().weight for one in (read, either))
    step = before.unflatten(1, (-1, 32)).abs().amax(-1, keepdim=True) / 2 ** (bits - 1)
    assert ((now - before).unflatten(1, (-1, 32)).abs() <= step * 1.01).all() and not torch.equal(now, before)
    head = read.module.get_output_embeddings().weight
    tied = either.config.tie_word_embeddings
    assert torch.equal(head, now) if tied else torch.equal(head, either.module.lm_head.weight)
    header = read_safetensors_header(tmp_path / "out" / "model.safetensors")
    assert EMBEDDING not in header and EMBEDDING + "_packed" in header
    planned, size = stage.plan(either.plan()), (tmp_path / "out" / "model.safetensors").stat().st_size
    assert abs(size - planned.num_bytes) < 0.1 * size
    assert planned.num_bytes < Quantize(**NEAREST).plan(either.plan()).num_bytes


def test_read_and_saved_again_it_is_dense_and_so_it_is_unpacked(either, ids, tmp_path):
    quantized = Quantize(**NEAREST, quantize_embedding=4)(either)
    quantized.save(tmp_path / "out")
    packed = load(tmp_path / "out")
    packed.save(tmp_path / "again")
    cards = [(tmp_path / name / "README.md").read_text() for name in ("out", "again")]
    assert ["Load it with `burnish.load`" in card for card in cards] == [True, False]
    Unpack(dtype="float32")(load(tmp_path / "out")).save(tmp_path / "unpacked")
    for name in ("again", "unpacked"):
        assert "quantization_config" not in json.loads((tmp_path / name / "config.json").read_text())
        torch.testing.assert_close(logits(load(tmp_path / name), ids), logits(quantized, ids), rtol=0, atol=0)


def test_the_plan_says_who_reads_it(either):
    notes = " ".join(Quantize(**NEAREST, quantize_embedding=8).plan(either.plan()).notes)
    assert "no stock loader reads a packed embedding" in notes and "burnish reads it" in notes
    assert "loads in transformers" not in notes


def test_a_target_below_what_is_dense_is_reached_with_a_packed_embedding(tmp_path, texts):
    small_llama(tie_word_embeddings=True).save_pretrained(tmp_path / "dense")
    small_tokenizer().save_pretrained(tmp_path / "dense")
    model = load(tmp_path / "dense")
    settings = {"method": "rtn", "group_size": 32, "tokens": 512, "length": 32, "target": "80kB"}
    with pytest.raises(SettingsError, match=r"no stock loader .*or take quantize_embedding: auto"):
        Quantize(**settings).plan(model.plan())
    with pytest.raises(SettingsError, match=r"60kB.* lie outside of the layers; choose a target between [^,]*$"):
        Quantize(**settings | {"target": "60kB"}, quantize_embedding=8).plan(model.plan())
    Quantize(**settings, quantize_embedding=8)(model, calibration=texts).save(tmp_path / "out")
    assert 75_000 < (tmp_path / "out" / "model.safetensors").stat().st_size <= 80_000


def test_divergences_count_what_becomes_of_the_embedding_and_leave_it_as_it_was(either, ids):
    stage, module = Quantize(**NEAREST, quantize_embedding=2), either.module
    ((view, scheme),) = outside_of(stage, module, matrices_of(module, stage))
    before, grid = view.tensor.clone(), scheme.grid(view.tensor, scale_dtype=torch.float32)
    rounded = grid.values(grid.codes(view.tensor))
    with_it = Original(module, ids).divergence([view], {view.name: rounded})
    assert torch.equal(view.tensor, before) and Original(module, ids).divergence() == [0.0, 0.0]
    with torch.no_grad():
        p = module(ids).logits[:, :-1].log_softmax(-1)
        view.write_(rounded)
        q = module(ids).logits[:, :-1].log_softmax(-1)
    torch.testing.assert_close(torch.tensor(with_it), (p.exp() * (p - q)).sum(-1).mean(-1), rtol=1e-3, atol=1e-7)


def test_where_there_is_text_its_rows_are_rounded_as_the_text_weighs_them(either, texts, ids, tmp_path):
    settings = {"group_size": 32, "tokens": 512, "length": 32}
    nearest = Quantize(**NEAREST, quantize_embedding=3)(either)
    stage = Quantize(method="gptq", bits=3, **settings, quantize_embedding=3)
    assert f"{EMBEDDING} at 3 bits, one column after another" in " ".join(stage.plan(either.plan()).notes)
    weighed = stage(either, calibration=texts, work_dir=tmp_path / "work")
    weighed.save(tmp_path / "out")
    torch.testing.assert_close(logits(load(tmp_path / "out"), ids), logits(weighed, ids), rtol=0, atol=0)
    (store,) = {path.parent.parent for path in (tmp_path / "work").rglob("vocabulary-fold0/key.json")}
    statistics = VocabularyStatistics(store, {}, range(4))
    view = next(one for one in matrices(either.module) if one.role == "embedding")
    assert len(statistics.uses(view, range(4))) == 1 + either.config.tie_word_embeddings
    costs = [
        VocabularyRounding(statistics, None).cost(view, one.module.get_input_embeddings().weight.detach())
        for one in (nearest, weighed)
    ]
    assert 0 < costs[1] < 0.9 * costs[0]


def chosen_for(model, texts, work_dir, target):
    settings = {"method": "gptq", "group_size": 32, "tokens": 512, "length": 32}
    stage = Quantize(**settings, target=target, quantize_embedding="auto")
    ledger = Ledger(None)
    ctx = Context({"calibration": texts}, work_dir, "cpu", seeded_generator(0), Progress(enabled=False), ledger)
    made = stage.run(model, ctx)
    widths = next(row["rows"] for row in ledger.rows if row.get("name") == "widths")
    return stage, made, {row["group"]: row["bits"] for row in widths}


@pytest.mark.slow
def test_a_width_of_the_embedding_is_chosen_together_with_those_of_the_layers(either, texts, ids, tmp_path):
    stage, made, widths = chosen_for(
        either, texts, tmp_path / "work", "100kB" if either.config.tie_word_embeddings else "150kB"
    )
    name = EMBEDDING.removesuffix(".weight")
    assert 2 <= widths[name] <= 8 and len(widths) == 1 + 2 * 4
    made.save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    groups = {
        target: group["weights"]["num_bits"]
        for group in config["config_groups"].values()
        for target in group["targets"]
    }
    assert groups[name] == widths[name]
    assert (tmp_path / "out" / "model.safetensors").stat().st_size <= stage.plan(either.plan()).num_bytes
    torch.testing.assert_close(logits(load(tmp_path / "out"), ids), logits(made, ids), rtol=0, atol=0)
    again = chosen_for(either, texts, tmp_path / "work", stage.target)[2]
    assert again == widths


@pytest.mark.slow
def test_where_it_counts_much_it_stays_as_it_is_and_stock_loaders_read_the_result(
    either, texts, ids, tmp_path, monkeypatch
):
    def much(_search, costs, _original):
        return [*costs[:-1], [1e6 * cost for cost in costs[-1]]]

    monkeypatch.setattr(Mixing, "comparable", much)
    room = Quantize(**NEAREST | {"bits": 8}).plan(either.plan()).num_bytes
    _, made, widths = chosen_for(either, texts, tmp_path / "work", f"{room // 1000}kB")
    assert widths[EMBEDDING.removesuffix(".weight")] in (16, 32)
    made.save(tmp_path / "out")
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(read(input_ids=ids).logits, logits(made, ids))


@pytest.mark.parametrize(("width", "said"), [("all", "a valid integer"), (1, "greater than or equal to 2")])
def test_a_width_that_is_none_is_refused_by_the_name_of_its_setting(width, said):
    with pytest.raises(SettingsError, match=rf"^quantize_embedding is {width!r}, but .* {said}.* or 'auto'"):
        Quantize.parse({"quantize_embedding": width}, where="")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"engine": "vllm", "bits": 4}, EngineError, "vllm was not seen to read a packed embedding"),
        ({"scheme": "fp8-dynamic"}, SettingsError, "quantize_embedding and scheme fp8-dynamic cannot be combined"),
        ({"stream": True}, SettingsError, "quantize_embedding and stream cannot be combined"),
        ({"quantize_embedding": "auto"}, SettingsError, "auto, but a width is chosen for a target alone; give target"),
        ({"ignore": ["re:.*embed.*"]}, SettingsError, "names model.embed_tokens.weight, which is asked for beside it"),
    ],
)
def test_what_it_cannot_be_combined_with_is_refused(either, settings, error, message):
    given = {"method": "rtn"} | settings | ({} if "scheme" in settings else {"group_size": 32})
    with pytest.raises(error, match=message):
        Quantize(**{"quantize_embedding": 8} | given).plan(either.plan())


def test_a_head_that_is_the_embedding_has_no_width_of_its_own(either):
    stage = Quantize(**NEAREST, quantize_embedding=8, head_bits=4)
    if either.config.tie_word_embeddings:
        with pytest.raises(SettingsError, match=r"the head is the embedding, .*quantize_embedding, which is for both"):
            stage.plan(either.plan())
    else:
        assert "lm_head.weight at 4 bits" in " ".join(stage.plan(either.plan()).notes)


def test_a_damaged_embedding_is_refused_by_name(either, tmp_path):
    from safetensors.torch import load_file, save_file

    Quantize(**NEAREST, quantize_embedding=8)(either).save(tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    scale = EMBEDDING + "_scale"
    for wounded in (tensors | {scale: tensors[scale] * float("nan")}, {k: v for k, v in tensors.items() if k != scale}):
        save_file(wounded, file, metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match="embed_tokens"):
            _ = load(tmp_path / "out").module
