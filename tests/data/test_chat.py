"""What the assistant says is learned, and nothing else."""

import pytest

from burnish.core.errors import DataError
from burnish.data.chat import chat_tokens, check_questions, said_in
from burnish.data.packing import IGNORED, documents, pack
from burnish.train.scratch import learn_tokenizer

TEXT = "The quick brown fox jumps over the lazy dog. Pack my box with five dozen liquor jugs. " * 5
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
FORGETFUL = CHATML.replace("m['content']", "(m['content'] if loop.last else m['content'][:3])")
CHAT = [
    {"role": "user", "content": "Who jumps?"},
    {"role": "assistant", "content": "The quick brown fox."},
    {"role": "user", "content": "Over what?"},
    {"role": "assistant", "content": "The lazy dog."},
]


@pytest.fixture
def tokenizer():
    words = learn_tokenizer([TEXT], 280)
    words.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    words.chat_template = CHATML
    return words


def test_exactly_the_assistants_words_and_its_end_of_turn_are_supervised(tokenizer):
    tokens, said = chat_tokens(tokenizer, CHAT)
    assert tokenizer.decode(tokens[said]) == "The quick brown fox.<|im_end|>The lazy dog.<|im_end|>"


def test_the_tokens_are_those_of_the_template(tokenizer):
    tokens, _ = chat_tokens(tokenizer, CHAT)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert tokens.tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]


def test_the_first_supervised_token_is_predicted_from_the_opening(tokenizer):
    (document,) = documents(tokenizer, [CHAT[:2]])
    first = document.supervised.argmax()
    assert tokenizer.decode(document.tokens[:first]).endswith("<|im_start|>assistant\n")


def test_what_the_user_says_is_no_target(tokenizer):
    rows = pack(documents(tokenizer, [CHAT]), 512)
    targets = rows.targets[rows.targets != IGNORED]
    assert tokenizer.decode(targets) == "The quick brown fox.<|im_end|>The lazy dog.<|im_end|>"


def test_a_template_that_rewrites_the_past_is_refused(tokenizer):
    tokenizer.chat_template = FORGETFUL
    with pytest.raises(DataError, match="writes message 2 differently"):
        chat_tokens(tokenizer, CHAT)


def test_a_chat_without_an_answer_is_refused(tokenizer):
    with pytest.raises(DataError, match="data, chat 1: has no assistant message"):
        list(documents(tokenizer, [CHAT[:1]]))


def test_a_tokenizer_without_a_template_is_refused():
    with pytest.raises(DataError, match="the tokenizer has no chat template"):
        chat_tokens(learn_tokenizer([TEXT], 280), CHAT)


def test_a_tokenizer_that_cannot_put_a_question_is_refused(tokenizer):
    check_questions(tokenizer)
    with pytest.raises(DataError, match="put to the model as chats, but its tokenizer has no chat template; use"):
        check_questions(learn_tokenizer([TEXT], 280))
    broken = learn_tokenizer([TEXT], 280)
    broken.chat_template = "{{ raise_exception('two turns are needed') }}"
    with pytest.raises(DataError, match=r"cannot write it out.*two turns are needed"):
        check_questions(broken)


def test_what_is_said_and_called_in_a_chat_is_text_without_a_template():
    call = {"function": {"name": "look", "arguments": {"at": "caf\u00e9"}}}
    chat = [{"role": "user", "content": "Go."}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    assert said_in(chat) == 'Go.\n\nlook {"at": "caf\u00e9"}'
