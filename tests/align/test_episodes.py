"""Episodes of several turns: tools, how calls are read, what stays of the drawn tokens, advantages by turn."""

from __future__ import annotations

import copy
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

import burnish
from burnish.align import episodes
from burnish.align.call_format import Call, CallFormat
from burnish.align.envs import SumsEnv, environment
from burnish.align.episode_trainer import EpisodeConfig, EpisodeTrainer
from burnish.align.episodes import DrawnEpisode, Rollouts
from burnish.align.maths.advantage import centred
from burnish.align.read_later import Judged, turns_of
from burnish.align.tools import CALCULATOR, FAILED, PYTHON, Tool
from burnish.core.errors import DataError
from burnish.generate import Sample
from burnish.verify.probe import walls
from small_models import SMALL_TRAINER
from trainers import logged

AGENT = (Path(__file__).parents[2] / "examples" / "agent.jinja").read_text()
HERMES = (
    "{% for m in messages %}<|{{ m.role }}|>{% if m.tool_calls %}{% for c in m.tool_calls %}<tool_call>\n"
    '{{ {"name": c.function.name, "arguments": c.function.arguments} | tojson }}\n</tool_call>{% endfor %}'
    "{% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
FORGETFUL = HERMES.replace("<tool_call>\n", "{% if loop.last and m == messages[-1] %}<tool_call>\n{% endif %}")


@pytest.fixture
def agent(tokenizer):
    found = copy.deepcopy(tokenizer)
    found.chat_template = AGENT
    return found


# -- tools -------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 99), min_size=2, max_size=5), st.data())
def test_the_calculator_gives_what_python_gives(numbers: list[int], data: st.DataObject) -> None:
    expression = str(numbers[0])
    for number in numbers[1:]:
        expression = f"({expression}){data.draw(st.sampled_from('+-*'))}{number}"
    assert CALCULATOR({"expression": expression}) == str(eval(expression))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"expression": "1/4"}, "0.25"),
        ({"expression": "0.1+0.2"}, "0.3"),
        ({"expression": "1/0"}, "error: division by zero"),
        ({"expression": "2**9"}, "error: only numbers, + - * / and brackets are known"),
        ({"expression": "open('x')"}, "error: only numbers"),
        ({"expression": "1+"}, "error: that is no expression"),
        ({"expression": "*".join(["9" * 300] * 5)}, "error: the number is too large"),
        ({"expression": "1" * 5000}, "error: the expression is too long"),
        ({"expression": 3}, "error: calculator takes expression, as text"),
        ({"sum": "1+1"}, "error: calculator takes expression, as text"),
    ],
)
def test_what_is_wrong_with_a_call_is_said_in_its_answer(arguments: dict[str, Any], said: str) -> None:
    assert CALCULATOR(arguments).startswith(said)


def test_a_tool_that_hangs_is_given_up_and_one_that_breaks_raises() -> None:
    slow = Tool("slow", "", {}, lambda: time.sleep(5) or "", seconds=0.05)
    assert slow({}) == "error: no answer within 0.05 seconds"
    with pytest.raises(KeyError):
        Tool("broken", "", {}, lambda: {}["x"])({})


@pytest.mark.skipif(not all(wall.holds for wall in walls()), reason="no isolation here")
def test_python_prints_or_says_why_not() -> None:
    assert PYTHON({"code": "print(3 * 4)"}) == "12"
    assert PYTHON({"code": "1/0"}) == "error: ZeroDivisionError: division by zero"


# -- the form of calls -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (AGENT, '\ncall calculator {"expression": "3+4"}'),
        (HERMES, '<tool_call>\n{"name": "calculator", "arguments": {"expression": "3+4"}}\n</tool_call>'),
    ],
)
def test_the_form_of_calls_is_learned_from_the_template(agent, template: str, written: str) -> None:
    agent.chat_template = template
    form = CallFormat.of(agent, [CALCULATOR])
    wanted = Call("calculator", {"expression": "3+4"})
    assert form.calls(written) == [wanted]
    assert form.calls(f"I think.{written}{written}") == [wanted, wanted]
    assert form.calls("7") == [] and form.calls(written.replace('"}', "")) == [Call("calculator", None)]
    messages = [
        {"role": "user", "content": "3+4"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "calculator", "arguments": {"x": "1"}}}],
        },
        {"role": "tool", "name": "calculator", "content": "7"},
    ]
    whole = agent.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert whole.endswith(form.answer_text("calculator", ["7"]))
    assert agent.decode(form.answer("calculator", ["7"])) == form.answer_text("calculator", ["7"])


def test_templates_that_write_no_calls_or_rewrite_turns_are_refused(tokenizer) -> None:
    with pytest.raises(DataError, match="does not write calls of tools out"):
        CallFormat.of(tokenizer, [CALCULATOR])
    forgetful = copy.deepcopy(tokenizer)
    forgetful.chat_template = FORGETFUL
    with pytest.raises(DataError, match="otherwise once it is answered"):
        CallFormat.of(forgetful, [CALCULATOR])


# -- episodes ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def scripted(agent, monkeypatch):
    """Draws episodes whose turns are those of a script, one list for each episode."""

    def draw(*scripts: list[str], max_turns: int = 3, max_tokens: int = 400, cut: bool = False) -> list[DrawnEpisode]:
        turn, form = iter(range(9)), CallFormat.of(agent, [CALCULATOR])

        def generate(module: Any, tokenizer: Any, prompts: list[list[int]], **_: Any) -> list[Sample]:
            number = next(turn)
            texts = [script[number] for script in scripts if len(script) > number]
            assert len(prompts) == len(texts)
            ids = [[*agent(text)["input_ids"], agent.eos_token_id] for text in texts]
            end = "length" if cut else "stop"
            return [Sample(text, one, [-0.5] * len(one), end) for text, one in zip(texts, ids, strict=True)]

        monkeypatch.setattr(episodes, "generate", generate)
        rollouts = Rollouts(form, max_turns, max_tokens)
        return rollouts.draw(None, [form.prompt([{"role": "user", "content": "3+4"}])] * len(scripts), range(9))

    return draw


def call(expression: str) -> str:
    return f'\ncall calculator {{"expression": "{expression}"}}'


def test_drawn_tokens_stay_and_observations_are_masked(scripted, agent) -> None:
    (one,) = scripted([call("3+4"), "7"])
    assert agent.decode(one.tokens) == f"{call('3+4')}</s>tool</s>7</s>assistant</s>7</s>"
    drawn = [token for token, mine in zip(one.tokens, one.mask, strict=True) if mine]
    assert agent.decode(drawn) == f"{call('3+4')}</s>7</s>"
    assert one.logprobs == [-0.5 * mine for mine in one.mask]
    assert (one.end, one.final, one.num_calls, one.failed_calls) == ("answered", "7", [1, 0], [0, 0])
    assert max(turns_of([bool(mine) for mine in one.mask])) == 1


def test_every_way_to_end_is_told(scripted) -> None:
    direct, long, wrong = scripted(["7"], [call("1"), call("2"), call("3")], [call("x"), "\ncall clock {}", "8"])
    assert (direct.end, direct.final) == ("answered", "7")
    assert (long.end, long.final, long.mask[-1]) == ("turns", "", 1)
    assert (wrong.end, wrong.final, wrong.failed_calls) == ("answered", "8", [1, 1, 0])
    assert scripted([call("3+4")], max_tokens=50)[0].end == "room"
    assert scripted([call("3+4")], cut=True)[0].end == "length"


def test_an_unknown_tool_and_broken_arguments_are_answered() -> None:
    assert (
        episodes.answered([CALCULATOR], Call("clock", {})) == f"{FAILED}there is no tool 'clock'; there is calculator"
    )
    assert episodes.answered([CALCULATOR], Call("calculator", None)) == f"{FAILED}the arguments are no JSON object"


def test_sums_are_apart_by_question_and_earn_by_the_last_answer() -> None:
    env = SumsEnv(20, 0)
    other = environment("calculator", 20, 0, apart_from=env.questions)
    assert not env.questions & other.questions
    assert {env.bin(number) for number in range(20)} == {"1 operation", "2 operations"}
    assert env.reward(completions=["?"] * 2, row=[0, 1], final=[env.problems[0]["answer"], ""]) == [1.0, 0.0]
    made = DrawnEpisode(turns=["a", "b"], failed_calls=[1, 0])
    assert env.turn_rewards(made, 1.0) == [-0.1, 1.0]


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def agent_model(tmp_path_factory) -> Path:
    """A model that has learned the form of calls, and little else."""
    import runpy

    from small_models import EXAMPLES, initialise

    place = tmp_path_factory.mktemp("agent")
    script = runpy.run_path(str(EXAMPLES / "calculator_episodes.py"))
    script["main"](str(place / "data"), 300)
    start = initialise(
        EXAMPLES / "reasoner_small.json", tokenizer="bpe:257", texts=["none"], chat_template=AGENT, seed=0
    )
    train = burnish.Train(steps=70, batch=8, context=192, lr=0.01, holdout=0.0, optimizer="normuon")
    train(start, data=str(place / "data" / "episodes.jsonl")).save(place / "model")
    return place / "model"


@pytest.fixture
def trainer(agent_model, tmp_path):
    def make(**changes: Any) -> EpisodeTrainer:
        env, model = SumsEnv(8, 0), burnish.load(agent_model)
        settings: dict[str, Any] = {
            "per_device_train_batch_size": 16,
            "num_generations": 4,
            "max_completion_length": 96,
            "max_steps": 2,
            "learning_rate": 1e-3,
            **SMALL_TRAINER,
        }
        return EpisodeTrainer(
            model.module,
            reward_funcs=[env.reward],
            args=EpisodeConfig(str(tmp_path), **settings | changes),
            train_dataset=Dataset.from_list(env.rows),
            processing_class=copy.deepcopy(model.tokenizer),
            env=env,
            rollouts=Rollouts(CallFormat.of(model.tokenizer, env.tools), 3, 96),
        )

    return make


@pytest.mark.slow
def test_no_drawn_token_is_tokenised_again_and_the_ratio_is_one(trainer, monkeypatch) -> None:
    made = trainer(learning_rate=0.0)
    kind, read = type(made.processing_class), list[str]()
    encode = kind._encode_plus

    def counted(self: Any, text: Any, *rest: Any, **named: Any) -> Any:
        read.extend([text] if isinstance(text, str) else text)
        return encode(self, text, *rest, **named)

    monkeypatch.setattr(kind, "_encode_plus", counted)
    made.train()
    assert max(logged(made, "ratio/furthest")) < 2e-5
    assert min(logged(made, "episodes/calls")) > 0.2 and min(logged(made, "episodes/turns")) > 1.0
    prompts = [text for text in read if text.startswith("user")]
    observations = [text for text in read if text.startswith("tool")]
    assert len(prompts) == 8  # each problem of two steps once, not each of its episodes
    assert len(read) == len(prompts) + len(observations)
    assert not any("call " in text for text in read)


@pytest.mark.slow
def test_a_step_of_episodes_is_the_same_in_one_piece_and_in_four(trainer) -> None:
    plain = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "length_shaping": "none"}
    ends = []
    for cut in ({}, {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}):
        made = trainer(**plain, **cut)
        made.reward_funcs[0] = _alternating
        made.train()
        ends.append(torch.cat([one.detach().flatten() for one in made.model.parameters()]))
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-6)


def _alternating(completions: list[Any], **_: Any) -> list[float]:
    return [float(place % 2) for place in range(len(completions))]


@pytest.mark.slow
def test_episodes_that_another_process_draws_ahead_are_those_drawn_in_turn(trainer, tmp_path) -> None:
    ends, settings = [], {"staleness": 1, "shuffle_dataset": False, "max_steps": 3, "credit": "mixed"}
    settings |= {"save_strategy": "steps", "save_steps": 1}
    for changes in ({}, {"asynchronous": True}):
        made = trainer(**settings, **changes)
        made.train()
        ends.append(torch.cat([one.detach().flatten() for one in made.model.parameters()]))
        assert logged(made, "staleness/max") == [0, 1, 1] and max(logged(made, "episodes/turns")) > 1
    assert torch.equal(*ends)
    again = trainer(**settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    assert torch.equal(torch.cat([one.detach().flatten() for one in again.model.parameters()]), ends[0])


def made_episode(*lengths: int, failed: tuple[int, ...] = ()) -> DrawnEpisode:
    """So many tokens a turn, an observation of two tokens after each but the last."""
    mask = [mine for length in lengths for mine in [1] * length + [0, 0]][:-2]
    return DrawnEpisode(mask=mask, turns=["t"] * len(lengths), failed_calls=list(failed or [0] * len(lengths)))


@pytest.mark.slow
def test_advantages_of_turns_equal_those_of_episodes_where_all_have_as_many_turns(trainer) -> None:
    made, earned = trainer(credit="stepwise"), torch.tensor([1.0, 0.0, 0.0, 1.0])
    made.model.train()
    whole = centred(earned.view(1, 4))[0]

    def credited(*drawn: DrawnEpisode, rewards: torch.Tensor = earned) -> torch.Tensor:
        made.episodes, made.judged = list(drawn), Judged([], rewards[:, None], rewards[:, None])
        width = max(len(one.mask) for one in drawn)
        return made.credited({"advantages": whole, "completion_ids": torch.zeros(4, width, dtype=torch.long)})

    same = [made_episode(3, 2), made_episode(1, 4), made_episode(2, 2), made_episode(3, 3)]
    found = credited(*same)
    for row, one in enumerate(same):
        mask = torch.tensor(one.mask + [0] * (found.shape[1] - len(one.mask)))
        torch.testing.assert_close(found[row], whole[row] * mask)
    # the second turn of two episodes is compared with each other alone
    other = credited(made_episode(3), made_episode(1), made_episode(2, 2), made_episode(3, 3))
    assert other[2, 4:6].tolist() == [-0.5, -0.5] and other[3, 5:8].tolist() == [0.5] * 3
    failed = credited(made_episode(3, 2), made_episode(1, 4, failed=(1, 0)), *same[2:])
    assert float(failed[1, 0]) < float(found[1, 0]) and float(failed[1, -1]) == float(found[1, -1])
    # an episode without a reward is in nobody's baseline
    unknown = credited(*same, rewards=torch.tensor([1.0, 0.0, 0.0, torch.nan]))
    assert not unknown[3].any() and float(unknown[0, 0]) == pytest.approx(2 / 3)


@pytest.mark.slow
def test_rows_of_own_episodes_train_on_the_tokens_that_were_drawn(agent_model, tmp_path) -> None:
    """Through a file of chats and the template, and back."""
    import runpy

    from burnish.core.progress import Progress
    from burnish.data.trajectories.curate import Curation, curate
    from burnish.data.trajectories.rows import Masking
    from small_models import EXAMPLES

    drawn, real = list[DrawnEpisode](), Rollouts.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Rollouts, "draw", lambda self, *given: drawn.extend(real(self, *given)) or drawn)
        runpy.run_path(str(EXAMPLES / "own_episodes.py"))["main"](str(agent_model), str(tmp_path / "own"), 200)
    masking = Masking(burnish.load(agent_model).tokenizer)
    quiet = Progress(enabled=False)
    curation = Curation([], skip_bad=True)
    rows = {row["id"]: row for row in curate([tmp_path / "own"], curation, masking, tmp_path / "work", quiet).rows}
    compared = 0
    for place, episode in enumerate(drawn):
        is_text = all("\ufffd" not in turn for turn in episode.turns)  # a byte that is no letter is lost in a chat
        if (row := rows.get(f"sum-1-{place}")) is not None and episode.end == "answered" and is_text:
            trained = [label for label in row["labels"] if label >= 0]
            own = [token for token, mine in zip(episode.tokens, episode.mask, strict=True) if mine]
            written = ["".join(masking.tokenizer.decode(ids).split()) for ids in (trained, own)]
            assert written[0] == written[1]  # but for white space, which calls are read without
            compared += 1
    assert compared > 100


@pytest.mark.slow
def test_the_command_trains_episodes_and_leaves_pages(agent_model, tmp_path) -> None:
    import json

    import warm

    small = ["--problems=8", "--held-out=4", "--prompts=4", "--rollouts=4", "--updates=2", "--max-new-tokens=96"]
    small += ["--floor=0", "--credit=mixed", "--max-turns=3"]
    out = tmp_path / "out"
    warm.run(tmp_path / "log", "align", "grpo", agent_model, "--env", "calculator", *small, "-o", out)
    rows = [json.loads(line) for line in (tmp_path / "out.run" / "ledger.jsonl").read_text().splitlines()]
    tables = {row["name"]: row["rows"] for row in rows if row["row"] == "table"}
    assert all(row["turns"] > 1 and row["ratio furthest from 1"] < 2e-5 for row in tables["rl_training"][:1])
    assert {row["difficulty"] for row in tables["rl_difficulty"]} == {"1 operation", "2 operations", "mean"}
    (page,) = (tmp_path / "out.run" / "drawn").rglob("episodes-01.html")
    text = page.read_text()
    assert "turn 2, final, advantage" in text and "turn 1, action, advantage" in text
