"""Episodes of a model itself with a tool: drawn, judged, and written as `burnish data trajectories` reads them.

python examples/own_episodes.py MODEL OUT [NUMBER [SEED]]

It works out sums with a calculator whose calls are really run, as `burnish align grpo MODEL --env calculator` asks for.
Which episodes to train on is then a matter of filters:

    burnish data trajectories OUT --bad-rows skip --filter verified --filter finished --tokenizer MODEL -o curated
    burnish train MODEL --data curated -o better
"""

import json
import sys
from pathlib import Path
from typing import Any

import burnish
from burnish.align.call_format import CallFormat
from burnish.align.envs import SumsEnv
from burnish.align.episodes import DrawnEpisode, Rollouts, answered

ENDS = {"answered": "finished", "length": "max_tokens", "turns": "max_turns", "room": "context"}


def messages_of(form: CallFormat, question: str, episode: DrawnEpisode) -> list[dict[str, Any]]:
    """The episode as a chat, with its calls apart from what was written before them."""
    said: list[dict[str, Any]] = [{"role": "user", "content": question}]
    for turn, text in enumerate(episode.turns):
        calls = [(f"call-{turn}-{number}", call) for number, call in enumerate(form.calls(text))]
        # arguments that are no JSON object stay the text that was written, and such an episode is refused as unreadable
        asked = [{"id": name, "function": {"name": c.name, "arguments": c.arguments or text}} for name, c in calls]
        said.append(
            {"role": "assistant", "content": form.before_calls(text)} | ({"tool_calls": asked} if calls else {})
        )
        if turn + 1 < len(episode.turns):
            said += [{"role": "tool", "tool_call_id": name, "content": answered(form.tools, c)} for name, c in calls]
    return said


def main(model: str, out: str, number: int = 400, seed: int = 1) -> None:
    policy, env = burnish.load(model), SumsEnv(number, seed)
    form = CallFormat.of(policy.tokenizer, env.tools)
    rollouts = Rollouts(form, max_turns=3, max_tokens=128, sampling={"temperature": 1.0, "batch_size": 256})
    prompts = [form.prompt(row["prompt"]) for row in env.rows]
    drawn = rollouts.draw(policy.module.eval(), prompts, [f"{seed} {place}" for place in range(number)])
    Path(out).mkdir(parents=True, exist_ok=True)
    with (Path(out) / "episodes.jsonl").open("w", encoding="utf-8") as file:
        for place, (problem, episode) in enumerate(zip(env.problems, drawn, strict=True)):
            row = {"id": problem["id"], "task": problem["question"], "reward": env.score(episode.final, place)}
            row |= {"exit_status": ENDS[episode.end], "tools": [tool.schema for tool in env.tools]}
            file.write(json.dumps(row | {"messages": messages_of(form, problem["question"], episode)}) + "\n")
    print(f"{out}: {number} episodes of {model}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:5]))
