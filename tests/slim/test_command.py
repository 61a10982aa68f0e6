"""`burnish slim`, `distill` and `convert upcycle` given what they cannot do: one sentence, and nothing written."""

import pytest

from burnish.cli import main


@pytest.fixture
def refused(capsys, tmp_path):
    """Runs a command that must fail before its work begins; returns its one line."""

    def run(*arguments):
        out = tmp_path / "out"
        with pytest.raises(SystemExit) as caught:
            main([*map(str, arguments), "-o", str(out)])
        assert caught.value.code == 1
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("burnish: error: ")
        assert not out.exists()
        return line

    return run


@pytest.fixture
def saved(model_of, tmp_path):
    return lambda name: model_of(name).save(tmp_path / name)


@pytest.fixture
def text(tmp_path, texts):
    file = tmp_path / "text.txt"
    file.write_text(texts[0])
    return file


def test_a_dense_model(refused, tiny_llama):
    assert "a llama model has no experts; quantize makes dense models smaller" in refused(
        "slim", tiny_llama, "--target", "50%"
    )


def test_an_unknown_architecture(refused, saved):
    place = saved("olmoe")
    config = (place / "config.json").read_text()
    (place / "config.json").write_text(config.replace('"olmoe"', '"stablelm"'))
    (place / "burnish.json").unlink()
    assert "stablelm" in refused("slim", place, "--target", "50%")


def test_a_width_that_is_not_divisible(refused, saved):
    assert "width is 20, which 64 does not divide" in refused("slim", saved("mixtral"), "--width", 20)


def test_a_target_below_what_is_not_in_experts(refused, saved):
    line = refused("slim", saved("mixtral"), "--target", "10%", "--multiple", 8)
    assert "with experts of 8, and 2 of them, 34," in line
    assert "cut attention groups too" in line
    assert "attention groups" not in refused("slim", saved("olmoe"), "--target", "10%", "--multiple", 8)


def test_a_width_that_stock_transformers_cannot_multiply(refused, saved):
    assert "multiple of 8" in refused("slim", saved("mixtral"), "--width", 50, "--multiple", 2)


def test_a_width_that_devices_cannot_share(refused, saved):
    mixtral = saved("mixtral")
    line = refused("slim", mixtral, "--width", 24, "--multiple", 8, "--tp", 2)
    assert "width is 24, which 16 (8 for each of 2 devices) does not divide" in line
    line = refused("slim", mixtral, "--num-key-value-heads", 1, "--tp", 2)
    assert "num_key_value_heads is 1, which 2 devices cannot share equally; use a multiple of 2" in line


def test_heads_behind_a_norm_over_all_heads(refused, saved):
    line = refused("slim", saved("olmoe"), "--width", 16, "--multiple", 8, "--num-key-value-heads", 1)
    assert "norm of queries and keys spans all heads" in line


def test_a_divergence_from_the_model_itself(refused, saved):
    line = refused("slim", saved("mixtral"), "--width", 16, "--multiple", 8, "--labels", "teacher")
    assert "divergence of a model from itself has no gradient" in line


def test_nothing_that_says_how_small(refused, saved):
    assert "nothing says how small" in refused("slim", saved("mixtral"))


def test_rounds_without_data(refused, saved):
    assert "no data is named" in refused("slim", saved("mixtral"), "--target", "60%", "--rounds", 2)


def test_too_many_rounds(refused, saved, text):
    line = refused("slim", saved("mixtral"), "--target", "60%", "--multiple", 8, "--rounds", 9, "--data", text)
    assert "use fewer rounds" in line


def test_a_setting_that_distill_does_not_have(refused, saved, text):
    line = refused(
        *("slim", saved("mixtral"), "--target", "60%", "--multiple", 8, "--rounds", 1, "--data", text),
        *("--recovery.rate", "0.1"),
    )
    assert "recovery: there is no setting 'rate' here" in line


def test_distilling_without_a_teacher(refused, tiny_llama, text):
    assert "no teacher is named" in refused("distill", tiny_llama, "--data", text)


def test_upcycling_a_mixture(refused, saved):
    assert "this one is a mixtral" in refused("convert", "upcycle", saved("mixtral"), "--num-experts", 4)


@pytest.mark.slow
def test_a_teacher_with_another_vocabulary(refused, saved, model_of, text, tmp_path):
    other = model_of("olmoe")
    other.module.resize_token_embeddings(380)
    teacher = other.save(tmp_path / "teacher")
    options = ("--data", text, "--context", 32, "--steps", 1)
    message = refused("distill", saved("olmoe"), "--teacher", teacher, *options)
    assert "the model has a vocabulary of 384 and the teacher one of 380" in message
