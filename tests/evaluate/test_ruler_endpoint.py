"""RULER on a server: what is sent, what comes back, and what is said of servers that send something else."""

import pytest

from burnish.cli import main
from burnish.core.checkpoint import load
from burnish.core.errors import SettingsError
from burnish.core.ledger import LEDGER_FILE, read_rows
from burnish.evaluate.ruler.endpoint import measure_endpoint
from burnish.evaluate.ruler.settings import RulerMeasurement
from burnish.reason import Endpoint, UpstreamError
from exact_server import ExactServer, InProcess
from small_models import make, small_tokenizer

SMALL = RulerMeasurement(lengths="1500", samples=2, depths=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    directory = tmp_path_factory.mktemp("models") / "served"
    make("llama", max_position_embeddings=4096, num_hidden_layers=1).save_pretrained(directory)
    tokenizer = small_tokenizer()
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}\n"
    tokenizer.save_pretrained(directory)
    return directory


def reads(model, messages, draw):
    """The number that stands in the needle, unless it stands in the middle."""
    lines = messages[0]["content"].split("\n")
    place = next(number for number, line in enumerate(lines) if "special magic number" in line and " is: " in line)
    found = lines[place].rpartition(": ")[2]
    return found if abs(place - len(lines) / 2) > 2 else "I do not know"


@pytest.fixture
def server():
    with ExactServer(rule=reads) as one:
        yield one


def test_scores_by_depth_are_those_of_the_servers_answers(checkpoint, server, tmp_path):
    endpoint = Endpoint(server.url, "exact")
    found = measure_endpoint(SMALL, load(checkpoint), ["niah_single_1"], endpoint, tmp_path / "calls")
    (row,) = found.tables["ruler_scores"]
    assert row["score"] == pytest.approx(2 / 3) and row["worst_depth"] == 0.5 and row["worst_score"] == 0
    protocol = found.evaluation.protocol
    assert protocol["engine"] == "endpoint, exact" and protocol["template"] == "the server's"
    assert sum(server.asked.values()) == 6
    again = measure_endpoint(SMALL, load(checkpoint), ["niah_single_1"], endpoint, tmp_path / "calls")
    assert again.tables == found.tables and sum(server.asked.values()) == 6


def test_the_answer_prefix_is_the_turn_that_the_server_continues(checkpoint, tmp_path, monkeypatch):
    bodies = []

    class Seen(InProcess):
        def __init__(self, endpoints):
            super().__init__(reads)
            self.bodies = bodies

        async def close(self):
            pass

    monkeypatch.setattr("burnish.reason.pool.OpenAITransport", Seen)
    endpoint = Endpoint("http://127.0.0.1:9/v1", "exact", sampling={"temperature": 0.7})
    measure_endpoint(SMALL, load(checkpoint), ["niah_single_1"], endpoint, tmp_path / "calls")
    slipped = SMALL.model_copy(update={"slip": "prefix"})
    found = measure_endpoint(slipped, load(checkpoint), ["niah_single_1"], endpoint, tmp_path / "others")
    ours, theirs = bodies[:6], bodies[6:]
    for body in ours:
        question, turn = body["messages"]
        assert question["role"] == "user" and turn["role"] == "assistant" and turn["content"].endswith("text is")
        assert body["continue_final_message"] and not body["add_generation_prompt"]
        assert body["temperature"] == 0 and body["max_tokens"] == 128
    assert [len(body["messages"]) for body in theirs] == [1] * 6 and "continue_final_message" not in theirs[0]
    assert found.evaluation.protocol["answer_prefix"] == "left out"


def test_a_server_that_reads_other_tokens_is_told(checkpoint, server, tmp_path, capsys):
    """The server counts words, the checkpoint's tokenizer pieces of them."""
    run = tmp_path / "run"
    command = ["evaluate", str(checkpoint), "--task", "ruler:niah_single_1", "--lengths", "1500", "--samples", "1"]
    main([*command, "--depths", "2", "--endpoint", f"mine={server.url},exact", "-o", str(run)])
    said = capsys.readouterr().out
    assert "exact at http://127.0.0.1" in said and "The server read -" in said and "100.0%" in said
    assert (run / "work" / "ruler-endpoints" / "mine" / "journal.db").is_file()
    (measured,) = [row for row in read_rows(run / LEDGER_FILE) if row["row"] == "measurement"]
    assert measured["metrics"]["ruler_niah_single_1_1500"]["value"] == 1


def test_a_server_that_does_not_count_is_told(checkpoint, tmp_path, capsys):
    with ExactServer(rule=reads, faults=((1.0, "no usage"),)) as server:
        command = ["evaluate", str(checkpoint), "--task", "ruler:niah_single_1", "--lengths", "1500", "--samples", "1"]
        main([*command, "--depths", "2", "--endpoint", f"mine={server.url},exact"])
    assert "does not say how many tokens it read" in capsys.readouterr().out


def test_a_server_that_does_not_continue_a_turn_is_refused_in_a_sentence(checkpoint, tmp_path):
    class Refuses(ExactServer):
        def refusal(self, request, body):
            from aiohttp import web

            if body["messages"][-1]["role"] != "assistant":
                return None
            return web.json_response({"error": {"message": "the last turn must be the user's"}}, status=400)

    with Refuses(rule=reads) as server:
        endpoint = Endpoint(server.url, "exact")
        with pytest.raises(UpstreamError, match=r"refuses to continue the answer prefix.*use --slip prefix"):
            measure_endpoint(SMALL, load(checkpoint), ["niah_single_1"], endpoint, tmp_path / "calls")
        slipped = SMALL.model_copy(update={"slip": "prefix"})
        found = measure_endpoint(slipped, load(checkpoint), ["niah_single_1"], endpoint, tmp_path / "others")
    assert found.tables["ruler_scores"][0]["score"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "changed, told",
    [
        ({"attention": "topk:0.1"}, "not in a server"),
        ({"template": "none"}, "asked in chats"),
        ({"slip": "bos"}, "the slip bos is its own"),
        ({"lengths": "8k"}, "positions end at 4,096"),
    ],
)
def test_what_a_server_does_not_let_one_decide_is_refused(checkpoint, tmp_path, changed, told):
    endpoint = Endpoint("http://127.0.0.1:9/v1", "exact")
    settings = RulerMeasurement.parse(SMALL.model_dump() | changed, where="here")
    with pytest.raises(SettingsError, match=told):
        measure_endpoint(settings, load(checkpoint), ["niah_single_1"], endpoint, tmp_path)
