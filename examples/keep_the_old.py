"""Learn one text and lose at most 0.02 nats on another: the same training without a bound and with one.

python examples/keep_the_old.py [CHECKPOINT [STEPS]]
"""

import math
import sys
from pathlib import Path

import burnish

PLAYS = str(Path(__file__).parent / "data" / "coriolanus.txt.gz")


def main(checkpoint: str = "models/smollm2", steps: str = "40") -> dict[str, float]:
    start = burnish.load(checkpoint)
    training = {"data": PLAYS, "optimizer": "adamw", "lr": 3e-4, "context": 64, "batch": 6, "steps": int(steps)}
    bound = {"bound_data": "wikitext2-valid", "bound_rise": 0.02, "bound_batch": 2, "bound_holdout": 0.01}
    free, bounded = burnish.Train(**training), burnish.Train(**training, **bound)
    models = {"start": start, "free": free(start), "bounded": bounded(start)}
    old = burnish.Evaluate(text="wikitext2-test", num_windows=16, context=64, speed=False)
    losses = {name: math.log(old(model).metrics["perplexity"]["value"]) for name, model in models.items()}
    print("nats a token of WikiText-2:", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items()))
    return losses


if __name__ == "__main__":
    main(*sys.argv[1:])
