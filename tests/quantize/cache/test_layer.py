"""The cache inside a model: what is exact stays exact, and everything that transformers does to a cache works."""

import pytest
import torch
from transformers import DynamicCache

from burnish.core.errors import CheckpointError, SettingsError
from burnish.quantize.cache.cached import CodedCache
from burnish.quantize.cache.codes import code_of
from burnish.quantize.cache.collect import KINDS, cache_shape, collect
from burnish.quantize.cache.fitted import FittedCodes
from burnish.quantize.cache.fitting import DictionaryLearning, fit
from small_models import make, small_llama

EVERY = ["rotated:3", "int2", "int4", "lexico:4", "lexico:4:packed"]


@pytest.fixture(scope="module")
def model():
    return small_llama().eval()


@pytest.fixture(scope="module")
def fitted(model) -> FittedCodes:
    generator = torch.Generator().manual_seed(0)
    windows = torch.randint(1, 384, (8, 32), generator=generator)
    learning = DictionaryLearning(num_atoms=48, num_vectors=256, epochs=1)
    return fit(model, windows, [code_of("lexico:4")], generator, model="this", learning=learning)


def tokens(batch: int, length: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(1, 384, (batch, length), generator=torch.Generator().manual_seed(seed))


def read(model, cache, ids, **more) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids, past_key_values=cache, use_cache=True, **more).logits


@pytest.mark.parametrize("name", EVERY)
def test_a_buffer_as_long_as_the_text_gives_the_bits_of_the_dense_cache(model, fitted, name):
    ids = tokens(2, 20)
    coded, dense = CodedCache(fitted, code_of(name), buffer=20), DynamicCache(config=model.config)
    for part in ids.split([12, 1, 1, 6], dim=1):
        assert torch.equal(read(model, coded, part), read(model, dense, part))
    assert set(coded.num_bytes()) == {"buffer.keys", "buffer.values"}


@pytest.mark.parametrize("name", EVERY)
def test_a_prompt_read_in_one_call_is_read_exactly(model, fitted, name):
    ids = tokens(2, 20)
    assert torch.equal(read(model, CodedCache(fitted, code_of(name), buffer=0), ids), model(ids).logits)


@pytest.mark.parametrize("name", EVERY)
def test_what_is_attended_to_is_the_decoded_past_and_the_dense_last_tokens(model, fitted, name):
    """Logits over the coded cache are those over a stock cache into which decoded vectors were put."""
    ids, code = tokens(2, 20), code_of(name)
    coded, dense = CodedCache(fitted, code, buffer=5), DynamicCache(config=model.config)
    read(model, coded, ids[:, :16])
    read(model, dense, ids[:, :16])
    for number, layer in enumerate(dense.layers):
        for kind in KINDS:
            exact, own = getattr(layer, kind), fitted.of(number, kind)
            past = code.decode(code.encode(exact[..., :11, :], own), own)
            setattr(layer, kind, torch.cat([past, exact[..., 11:, :]], dim=-2))
    assert torch.equal(read(model, coded, ids[:, 16:]), read(model, dense, ids[:, 16:]))


@pytest.mark.parametrize("name", EVERY)
def test_a_token_is_coded_once_and_alike_however_the_text_is_cut(model, fitted, name):
    ids, code = tokens(1, 24), code_of(name)
    dense = DynamicCache(config=model.config)
    read(model, dense, ids)
    caches = []
    for sizes in ([24], [10, 1, 1, 1, 11], [1] * 24):
        cache = CodedCache(fitted, code, buffer=3)
        for number, layer in enumerate(dense.layers):
            at = 0
            for size in sizes:
                cache.layers[number].update(layer.keys[..., at : at + size, :], layer.values[..., at : at + size, :])
                at += size
        caches.append(cache)
    for cache in caches[1:]:
        for first, other in zip(caches[0].layers, cache.layers, strict=True):
            assert other.num_coded == 21 == first.num_coded
            for kind in KINDS:
                assert torch.equal(getattr(first, kind), getattr(other, kind))
                for part, tensor in first.stored[kind].items():
                    assert torch.equal(tensor, other.stored[kind][part])


@pytest.mark.parametrize("name", EVERY)
def test_bytes_are_those_that_the_code_says(model, fitted, name):
    cache, code = CodedCache(fitted, code_of(name), buffer=4), code_of(name)
    read(model, cache, tokens(3, 14))
    held, shape = cache.num_bytes(), fitted.shape
    vectors = shape.num_layers * shape.num_heads * 3 * 10
    assert sum(size for part, size in held.items() if part.startswith("codes")) == 2 * vectors * sum(
        code.parts(fitted.of(0, "keys")).values()
    )
    assert held["buffer.keys"] == shape.num_layers * shape.num_heads * 3 * 4 * shape.head_dim * 4


def test_fine_codes_give_the_tokens_of_the_dense_cache(model, fitted):
    ids = tokens(2, 12)
    options = {"max_new_tokens": 24, "do_sample": False}
    coded = model.generate(ids, past_key_values=CodedCache(fitted, code_of("int8"), buffer=2), **options)
    assert torch.equal(coded, model.generate(ids, **options))


@pytest.mark.parametrize("name", ["rotated:3", "lexico:4"])
def test_texts_of_a_left_padded_batch_are_continued_as_each_alone(model, fitted, name):
    ids, mask = tokens(2, 12), torch.ones(2, 12, dtype=torch.long)
    ids[0, :5], mask[0, :5] = 0, 0

    def continued(some: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        cache = CodedCache(fitted, code_of(name), buffer=2)
        found = model.generate(some, attention_mask=mask, past_key_values=cache, max_new_tokens=10, do_sample=False)
        return found[:, some.shape[1] :]

    together = continued(ids, mask)
    assert torch.equal(together[:1], continued(ids[:1, 5:], mask[:1, 5:]))
    assert torch.equal(together[1:], continued(ids[1:], mask[1:]))


def test_beams_are_those_of_a_dense_cache_under_fine_codes(model, fitted):
    ids = tokens(2, 12)
    options = {"max_new_tokens": 10, "num_beams": 3, "do_sample": False}
    cache = CodedCache(fitted, code_of("int8"), buffer=3)
    assert torch.equal(model.generate(ids, past_key_values=cache, **options), model.generate(ids, **options))


@pytest.mark.parametrize("name", EVERY)
def test_texts_are_repeated_chosen_and_put_in_another_order(model, fitted, name):
    ids = tokens(2, 10)
    cache = CodedCache(fitted, code_of(name), buffer=3)
    read(model, cache, ids)
    before = {kind: [layer.decoded(kind) for layer in cache.layers] for kind in KINDS}
    cache.batch_repeat_interleave(3)
    cache.batch_select_indices(torch.tensor([0, 2, 5]))
    cache.reorder_cache(torch.tensor([2, 1, 0]))
    order = [1, 0, 0]
    for kind in KINDS:
        for layer, decoded in zip(cache.layers, before[kind], strict=True):
            assert torch.equal(layer.decoded(kind), decoded[order])
    dense = DynamicCache(config=model.config)
    read(model, dense, ids)
    assert torch.equal(cache.layers[0].keys, dense.layers[0].keys[order][..., -3:, :])


@pytest.mark.parametrize("removed", [2, 4, 9])
def test_a_cut_off_end_can_be_read_again(model, fitted, removed):
    """Whether it was dense or coded: what is left is what a cache holds that never had more."""
    ids = tokens(1, 16)
    whole, short = (CodedCache(fitted, code_of("rotated:3"), buffer=4) for _ in range(2))
    read(model, whole, ids)
    whole.crop(-removed)
    assert whole.get_seq_length() == 16 - removed
    read(model, short, ids)
    for layer in short.layers:
        assert layer.num_coded == 12
    expected = DynamicCache(config=model.config)
    read(model, expected, ids[:, : 16 - removed])
    for number, layer in enumerate(expected.layers):
        coded = min(12, 16 - removed)
        for kind in KINDS:
            past = short.layers[number].decoded(kind)[..., :coded, :]
            setattr(layer, kind, torch.cat([past, getattr(layer, kind)[..., coded:, :]], dim=-2))
    again = ids[:, 16 - removed :]
    assert torch.allclose(read(model, whole, again), read(model, expected, again), atol=1e-5)
    whole.reset()
    assert whole.get_seq_length() == 0
    assert torch.equal(read(model, whole, ids), model(ids).logits)


def test_keys_are_collected_behind_the_rotary_embedding(model):
    ids = tokens(3, 16)
    found = collect(model, ids, 10_000, torch.Generator().manual_seed(0))
    dense = DynamicCache(config=model.config)
    read(model, dense, ids)
    for number, layer in enumerate(dense.layers):
        for kind in KINDS:
            assert torch.allclose(found[kind][number], getattr(layer, kind).transpose(0, 1).flatten(1, 2), atol=1e-5)


def test_fitting_goes_on_with_the_dictionaries_that_are_there(model, tmp_path, monkeypatch):
    from burnish.quantize.cache import fitting

    windows, learning = tokens(8, 32), DictionaryLearning(num_atoms=40, num_vectors=256, epochs=1)
    made, learn = [], fitting.learn_dictionary

    def stopping(*args, **options):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(args)
        return learn(*args, **options)

    def run(work):
        generator = torch.Generator().manual_seed(0)
        return fit(model, windows, [code_of("lexico:2")], generator, model="this", learning=learning, work=work)

    monkeypatch.setattr(fitting, "learn_dictionary", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    monkeypatch.setattr(
        fitting, "learn_dictionary", lambda *args, **options: made.append(args) or learn(*args, **options)
    )
    resumed = run(tmp_path)
    assert len(made) == 4
    for name, tensor in run(None).tensors.items():
        assert torch.equal(tensor, resumed.tensors[name]), name


@pytest.mark.parametrize(
    ("model_type", "changes", "reason"),
    [
        ("mistral", {"sliding_window": 8}, "DynamicSlidingWindowLayer"),
        ("qwen3_next", {}, "LinearAttention"),
        ("deepseek_v2", {}, "latents"),
    ],
)
def test_a_cache_of_another_kind_is_refused_by_name(model_type, changes, reason):
    with pytest.raises(CheckpointError, match=reason):
        cache_shape(make(model_type, **changes))


def test_a_negative_buffer_is_refused(fitted):
    with pytest.raises(SettingsError, match="buffer"):
        CodedCache(fitted, code_of("int4"), buffer=-1)
