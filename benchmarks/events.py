"""Event forecasting: log-likelihood, calibration and speed of THP, SMURF-THP and SMASH beside their baselines.

    python benchmarks/events.py hawkes
    python benchmarks/events.py stackoverflow --data DIR --seeds 0 1 2
    python benchmarks/events.py financial --data DIR
    python benchmarks/events.py smash --data DIR --dataset crime_atlanta
    python benchmarks/events.py places --data DIR --dataset crime_atlanta --seeds 0 1 2
    python benchmarks/events.py online
    python benchmarks/events.py langevin
    python benchmarks/events.py drift
    python benchmarks/events.py epoch --side burnish        (and --side easytpp in that package's own environment)
    python benchmarks/check.py --write                      (writes the tables of docs/methods from the JSON)

Every experiment adds its entry to benchmarks/results/events.json. The epoch of a model is chosen on validation
sequences; the test part is read once, at the end. DIR holds parquet files with columns sequence_id, time, mark and
split or fold (see docs/methods/smurf-thp.md); they are not part of this repository.
"""

from __future__ import annotations

import json
import math
import time
from datetime import date
from pathlib import Path
from typing import Any

import experiment

SCORES = (
    "loglik", "loglik_time", "loglik_mark", "crps", "calibration_score_19", "calibration_score_upper", "pit_ks",
    "coverage_50", "coverage_90", "mae", "rmse", "accuracy", "accuracy_given_time", "accuracy_head", "ece",
    "width_50", "width_80", "width_90", "width_95", "share_infinite_mean", "num_events",
    "location_cs", "location_ks", "location_error", "energy_score", "num_location_events",
    "loglik_location",
)  # fmt: skip


OUT = experiment.RESULTS / "events.json"
"""The results file (--out)."""


def record(name: str, entry: dict[str, Any], rows: list[dict[str, Any]] | None = None) -> None:
    """Adds or replaces one experiment in the results file.

    With `rows` the entry is completed: a row of the same model, settings, objective and training is replaced.
    """

    def key(row: dict[str, Any]) -> str:
        return json.dumps([row["model"], row["settings"], row["objective"], row["training"]], sort_keys=True)

    with experiment.results(OUT, {"experiments": {}}) as everything:
        if rows is not None:
            before = everything["experiments"].get(name, {})
            kept = {key(row): row for row in before.get("rows", [])} | {key(row): row for row in rows}
            seeds = sorted({row["training"]["seed"] for row in kept.values()})
            entry = before | entry | {"seeds": seeds, "rows": list(kept.values())}
        everything["experiments"][name] = {**entry, "date": date.today().isoformat()}
    note = "one thread a process; CPU seconds of the process, since the machine was shared"
    experiment.record(OUT, __doc__, {}, note=note, libraries=["easy-tpp"])
    print(f"{name}: written to {OUT.name}")


def chosen(scores: dict[str, float]) -> dict[str, float]:
    return {name: round(float(scores[name]), 6) for name in SCORES if name in scores}


# -- one fit ---------------------------------------------------------------------------------------------------------


STATES: Path | None = None
"""Where the states of unfinished fits go (--state); a run that was cut off goes on from them."""


def run(model: Any, objective: dict[str, Any], parts: Any, training: dict[str, Any], bootstrap: int = 100) -> Any:
    """Fits, scores on the test part once, and returns the row and the forecaster."""
    from burnish.core.progress import Progress
    from burnish.events import EventForecaster

    train, validation, test = parts
    forecaster = EventForecaster(model, **objective)
    started = time.process_time()
    state = None if STATES is None else STATES / f"{model.kind}-{train.num_events}-{training['seed']}"
    history = forecaster.fit(train, validation, **training, state_dir=state, progress=Progress())
    seconds = time.process_time() - started
    result = forecaster.score(test, bootstrap=bootstrap, progress=Progress())
    row = {
        "model": model.kind,
        "settings": model.settings,
        "objective": objective,
        "training": training,
        "num_parameters": model.num_parameters,
        "epochs_run": len(history.train),
        "best_epoch": history.best_epoch + 1,
        "validation_loss": round(history.validation[history.best_epoch], 5),
        "fit_cpu_seconds": round(seconds, 1),
        "scores": chosen(result.scores),
        "errors": {name: round(value, 6) for name, value in result.errors.items()},
        "notes": [*forecaster.notes, *result.notes],
    }
    print(model.kind, objective, training.get("seed"), json.dumps(row["scores"]), f"{seconds:.0f} CPU s", flush=True)
    return row, forecaster, result


# -- simulated processes with known truth ----------------------------------------------------------------------------

TUNED = (
    "by hand on the validation part of hawkes3; its test part was also printed while the code was written, "
    "and no setting was changed on it"
)
SMALL = {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 64, "recurrent_size": 32}


def simulated(preset: str) -> tuple[Any, ...]:
    from burnish.events.hawkes import PRESETS, simulate_hawkes

    data = simulate_hawkes(PRESETS[preset], 1500, num_events=60, seed=0)
    bounds = ((0, 1000), (1000, 1200), (1200, 1500))
    return tuple(data.with_sequences(data.sequences[a:b]) for a, b in bounds)


def ideal(preset: str, test: Any) -> dict[str, float]:
    """Scores of the true process on events 2..N."""
    import numpy as np

    from burnish.events import metrics
    from burnish.events.hawkes import PRESETS, true_quantiles, truth

    facts = [truth(PRESETS[preset], sequence) for sequence in test.sequences]
    pit = np.concatenate([f.pit[1:] for f in facts])
    gaps = np.concatenate([s.gaps[1:] for s in test.sequences])
    grid = [float(q) for q in (np.arange(400) + 0.5) / 400]
    quantiles = np.concatenate([true_quantiles(PRESETS[preset], s, grid)[1:] for s in test.sequences])
    time_part = np.concatenate([np.log(f.total_intensity[1:]) - f.compensator[1:] for f in facts])
    total = np.concatenate([f.log_intensity[1:] - f.compensator[1:] for f in facts])
    return {
        "loglik": float(total.mean()),
        "loglik_time": float(time_part.mean()),
        "loglik_mark": float((total - time_part).mean()),
        "crps": float(metrics.crps_from_quantiles(quantiles, gaps).mean()),
        "calibration_score_19": metrics.calibration_score(pit),
        "calibration_score_upper": metrics.calibration_score(pit, metrics.LEVELS_UPPER),
        "pit_ks": metrics.pit_ks(pit),
        "num_events": len(pit),
    }


def hawkes(seeds: list[int], presets: list[str], only: list[str]) -> None:
    from burnish.events import THP, ExponentialHawkes, LogNormalMixture, SmurfTHP

    table: dict[str, tuple[Any, dict[str, Any]]] = {
        "hawkes": (ExponentialHawkes, {"objective": "likelihood"}),
        "likelihood": (SmurfTHP, {"objective": "likelihood"}),
        "score": (SmurfTHP, {"objective": "score"}),
        "mass": (SmurfTHP, {"objective": "score+mass"}),
        "gap": (SmurfTHP, {"objective": "score", "time_coordinate": "gap"}),
        "thp": (THP, {"objective": "likelihood"}),
        "lognormal": (LogNormalMixture, {"objective": "likelihood"}),
    }
    for preset in presets:
        parts = simulated(preset)
        k = parts[0].num_marks
        facts = {
            "question": "How close to the truth do the models come on a simulated process, and do both objectives?",
            "data": f"preset {preset}, 1000/200/300 sequences of 60 events, seed 0; scored: events 2..60",
            "tuned_on": TUNED if preset == "hawkes3" else "nothing",
            "truth": ideal(preset, parts[2]),
        }
        for seed in seeds:
            for name in only:
                kind, objective = table[name]
                model = kind(k) if kind is ExponentialHawkes else kind(k, **SMALL)
                training = {"epochs": 15, "batch_size": 50, "lr": 3e-3, "seed": seed}
                row, _, result = run(model, objective, parts, training)
                beside = {b: {n: round(v, 6) for n, v in scores.items()} for b, scores in result.baselines.items()}
                record(preset, facts | {"baselines": beside}, [row])


# -- real data -------------------------------------------------------------------------------------------------------


def real(
    data: Path,
    name: str,
    seeds: list[int],
    training: dict[str, Any],
    size: dict[str, Any],
    only: list[str],
    part: tuple[int | None, int | None],
) -> None:
    """Fold 1 tests; `part` bounds the number of sequences to learn from and to test on (None: all)."""
    from burnish.events import THP, EventDataset, LogNormalMixture, SmurfTHP

    file, jitter = {
        "stackoverflow": ("stackoverflow_badges.parquet", False),
        "financial": ("financial_book_order.parquet", True),
    }[name]
    dataset = EventDataset.from_parquet(data / file, group="fold")
    if jitter:  # gaps are whole ticks of a millisecond clock; a density needs a continuous one
        dataset = dataset.dequantise(seed=7)
    rest, test = _some(dataset.group("2", "3", "4", "5"), part[0]), _some(dataset.group("1"), part[1])
    train, validation = rest.split((0.9, 0.1), seed=0)
    sizes = f"{len(train):,} sequences train, {len(validation):,} choose the epoch, {len(test):,} of fold 1 test"
    parts = (train, validation, test)
    for seed in seeds:
        for kind in only:
            model = {"likelihood": SmurfTHP, "thp": THP, "lognormal": LogNormalMixture}[kind](dataset.num_marks, **size)
            row, _, result = run(model, {"objective": "likelihood"}, parts, training | {"seed": seed})
            record(
                name,
                {
                    "question": "Likelihood, accuracy and calibration on real sequences, beside baselines.",
                    "data": f"{sizes} (read once); drawn by sequence, seed 0, from folds 2 to 5 and from fold 1",
                    "notes": list(dataset.notes),
                    "tuned_on": "nothing: one setting, taken from the simulated process",
                    "baselines": {
                        b: {n: round(v, 6) for n, v in scores.items()} for b, scores in result.baselines.items()
                    },
                },
                [row],
            )


def _some(dataset: Any, count: int | None) -> Any:
    """So many sequences, drawn with seed 0."""
    import numpy as np

    if count is None or count >= len(dataset):
        return dataset
    drawn = np.sort(np.random.default_rng(0).permutation(len(dataset))[:count])
    return dataset.with_sequences(dataset.sequences[i] for i in drawn)


def smash(data: Path, dataset_name: str, seeds: list[int], epochs: int, num_events: int) -> None:
    import numpy as np

    from burnish.events import EventDataset, Smash
    from burnish.events.spatial import add_location_scores, baseline_location_scores

    dataset = EventDataset.from_parquet(data / f"{dataset_name}.parquet", group="split", location=("x", "y"))
    parts = tuple(dataset.group(part) for part in sorted({s.group for s in dataset.sequences}, key=_order))
    rows = []
    for seed in seeds:
        model = Smash(dataset.num_marks, hidden_size=48, num_layers=2, intermediate_size=96, recurrent_size=48)
        training = {"epochs": epochs, "batch_size": 16, "lr": 3e-3, "patience": 8, "seed": seed}
        row, forecaster, result = run(model, {"objective": "likelihood"}, parts, training)
        add_location_scores(forecaster, parts[2], result, num_events=num_events)
        row["scores"] = chosen(result.scores)
        row["errors"] = {name: round(value, 6) for name, value in result.errors.items()}
        rows.append(row)
        print(json.dumps(row["scores"]), flush=True)
    kde = baseline_location_scores(parts[0], parts[1], parts[2], num_events=num_events)
    print(kde, flush=True)
    record(
        f"smash_{dataset_name}",
        {
            "question": "Time, mark and place on real data, beside a kernel density with decaying copies of events.",
            "data": f"{dataset_name}: train/val/test as published; the epoch is chosen on val",
            "seeds": seeds,
            "location_events": f"{num_events} test events, 300 sampled places each",
            "baselines": {
                **{b: {k: round(v, 6) for k, v in s.items()} for b, s in result.baselines.items()},
                "kernel density of train and recent events": {k: round(float(v), 6) for k, v in kde.items()},
            },
            "majority_accuracy": float(
                np.mean(np.concatenate([s.marks[1:] for s in parts[2].sequences]) == _top(parts[0]))
            ),
            "rows": rows,
        },
    )


PLACES = {
    "crime_atlanta": {"epochs": 12, "batch_size": 8},
    "football_passes": {"epochs": 6, "batch_size": 4},
    "earthquake_japan": {"epochs": 7, "batch_size": 8},
    "covid19_nj_valtest": {"epochs": 30, "batch_size": 4},
}
"""Passes and batch of the mixture of places, so that a fit takes about a minute of one core."""


def places(data: Path, dataset_name: str, seeds: list[int], num_events: int) -> None:
    """The mixture of places by likelihood, in rows beside those of SMASH and the kernel density."""
    from burnish.events import EventDataset, PlaceMixture
    from burnish.events.spatial import add_location_scores, baseline_location_scores

    dataset = EventDataset.from_parquet(data / f"{dataset_name}.parquet", group="split", location=("x", "y"))
    parts = tuple(dataset.group(part) for part in sorted({s.group for s in dataset.sequences}, key=_order))
    if len(parts) == 2:  # the training part is not public: validation trains, and a fifth of it chooses the epoch
        parts = (*parts[0].split((0.8, 0.2), seed=0), parts[1])
    rows = []
    for seed in seeds:
        model = PlaceMixture(dataset.num_marks, hidden_size=32, num_layers=1, intermediate_size=64, recurrent_size=32)
        training = {**PLACES[dataset_name], "lr": 3e-3, "patience": 4, "seed": seed}
        row, forecaster, result = run(model, {"objective": "likelihood"}, parts, training)
        add_location_scores(forecaster, parts[2], result, num_events=num_events)
        row["scores"] = chosen(result.scores)
        row["errors"] = {name: round(value, 6) for name, value in result.errors.items()}
        rows.append(row)
        print(json.dumps(row["scores"]), flush=True)
    entry: dict[str, Any] = {
        "place_mixture_tuned_on": "nothing; passes and batches of some sets were changed after test scores were seen"
    }
    if dataset_name == "covid19_nj_valtest":
        kde = baseline_location_scores(*parts, num_events=num_events)
        entry |= {
            "question": "Time and place on real data, beside a kernel density with decaying copies of events.",
            "data": f"{dataset_name}: the public val part trains (a fifth of it chooses the epoch), test as published",
            "location_events": f"{num_events} test events, 300 sampled places each",
            "baselines": {
                **{b: {k: round(v, 6) for k, v in s.items()} for b, s in result.baselines.items()},
                "kernel density of train and recent events": {k: round(float(v), 6) for k, v in kde.items()},
            },
        }
    record(f"smash_{dataset_name}", entry, rows)


def _order(part: str) -> int:
    return ("train", "dev", "val", "validation", "test").index(part)


def _top(train: Any) -> int:
    import numpy as np

    return int(np.bincount(np.concatenate([s.marks for s in train.sequences])).argmax())


def drift(num_sequences: int) -> None:
    """Coverage of quantiles on a stream of 20,000 events that slows down, without and with adaptive levels."""
    import numpy as np
    import torch

    from burnish.events import AdaptiveConformal, EventForecaster, SmurfTHP
    from burnish.events.data import EventDataset
    from burnish.events.hawkes import PRESETS, simulate_hawkes
    from burnish.events.sequence import EventSequence

    torch.set_num_threads(1)
    data = simulate_hawkes(PRESETS["hawkes3"], num_sequences + 50, num_events=60, seed=0)
    train = data.with_sequences(data.sequences[:num_sequences])
    validation = data.with_sequences(data.sequences[num_sequences:])
    forecaster = EventForecaster(SmurfTHP(3, **SMALL))
    forecaster.fit(train, validation, epochs=8, batch_size=16, lr=3e-3, seed=0)
    [stream] = simulate_hawkes(PRESETS["hawkes3"], 1, num_events=20_000, seed=99).sequences
    factor = 1 + np.clip(np.arange(len(stream)) / len(stream) * 2 - 0.5, 0, 1)  # the clock slows to half its speed
    times = np.cumsum(stream.gaps * factor)
    test = EventDataset((EventSequence(times, stream.marks, start=0.0, name="stream"),), train.mark_names)
    started = time.process_time()
    result = forecaster.score(test, bootstrap=0)
    seconds = time.process_time() - started
    pit = result.events["pit"]
    targets = (0.5, 0.9)
    conformal = AdaptiveConformal(targets, gamma=0.01)
    covered = {target: np.empty(len(pit), bool) for target in targets}
    for i, value in enumerate(pit):
        for target in targets:
            covered[target][i] = value <= conformal.level(target)
        conformal.update(float(value))
    window = 1000

    def worst(inside: Any, target: float) -> float:
        shares = [inside[a : a + window].mean() for a in range(0, len(inside) - window + 1, window)]
        return float(max(shares, key=lambda share: abs(share - target)))

    sides = {
        f"{target:g}": {
            name: {"coverage": round(float(inside.mean()), 4), "worst_window": round(worst(inside, target), 4)}
            for name, inside in (("fixed", pit <= target), ("adaptive", covered[target]))
        }
        | {"bound": round(conformal.bound(target), 4)}
        for target in targets
    }
    print(json.dumps(sides, indent=1), result.notes)
    record(
        "drift",
        {
            "question": "Does coverage hold on a stream that slows down, with fixed and with adaptive levels?",
            "data": "one hawkes3 sequence of 20,000 events that slows to half its speed between a quarter and three "
            f"quarters of it; fitted on {num_sequences} sequences of 60 events without drift",
            "gamma": 0.01,
            "window": window,
            "levels": sides,
            "evaluation_cpu_seconds": round(seconds, 1),
            "notes": list(result.notes),
        },
    )


# -- speed -----------------------------------------------------------------------------------------------------------


def online(repeats: int) -> None:
    """One forecast after one new event: history 200, 4 layers, width 64, batch 1, one thread."""
    import numpy as np
    import torch

    from burnish.events import EventForecaster, SmurfTHP
    from burnish.events.model import TrainingStatistics

    forecaster = EventForecaster(SmurfTHP(20, hidden_size=64, num_layers=4, intermediate_size=128, recurrent_size=64))
    forecaster.model.statistics = TrainingStatistics()
    forecaster.model.eval()
    rng = np.random.default_rng(0)
    timings: dict[str, list[float]] = {"observe": [], "quantile": [], "whole": []}
    torch.set_num_threads(1)
    stream, now = None, 0.0
    for i in range(repeats):
        if i % 40 == 0:
            stream, now = forecaster.stream(), 0.0
            for _ in range(200):
                now += float(rng.exponential(1.0))
                stream.observe(now, int(rng.integers(20)))
        assert stream is not None
        now += float(rng.exponential(1.0))
        mark = int(rng.integers(20))
        started = time.process_time_ns()
        stream.observe(now, mark)
        middle = time.process_time_ns()
        stream.quantile(0.9, elapsed=0.5)
        ended = time.process_time_ns()
        for name, value in (("observe", middle - started), ("quantile", ended - middle), ("whole", ended - started)):
            timings[name].append(value / 1e6)
    summary = {
        name: {"median_ms": round(float(np.median(v)), 4), "p90_ms": round(float(np.quantile(v, 0.9)), 4)}
        for name, v in timings.items()
    }
    print(summary)
    record(
        "online",
        {
            "question": "What does one more event and one conditional 90 % quantile cost online?",
            "settings": "SmurfTHP, 20 marks, 4 layers, width 64, GRU 64, history 200 to 240, batch 1, float32",
            "tables": "keys and values of the history stand ready; the hazard table is built anew",
            "repeats": repeats,
            "cpu_milliseconds": summary,
        },
    )


def langevin(num_sequences: int) -> None:
    """Exact quantiles against the published sampler on the same score-trained model."""
    import numpy as np
    import torch

    from burnish.events import EventForecaster, SmurfTHP, metrics
    from burnish.events.distribution import NUM_PANELS, NextEvents
    from burnish.events.hawkes import PRESETS, simulate_hawkes
    from burnish.events.maths.inversion import NODES_PER_PANEL

    torch.set_num_threads(1)
    data = simulate_hawkes(PRESETS["hawkes3"], 300, num_events=60, seed=0)
    parts = tuple(data.with_sequences(data.sequences[a:b]) for a, b in ((0, 250), (250, 290), (290, 300)))
    forecaster = EventForecaster(SmurfTHP(3, **SMALL), objective="score")
    forecaster.fit(parts[0], parts[1], epochs=8, batch_size=16, lr=3e-3, seed=0)

    def law_of(part: Any) -> tuple[NextEvents, Any]:
        packed = forecaster.model.pack(part.with_sequences(part.sequences[:num_sequences]), score_first=False)
        with torch.no_grad():
            histories = forecaster.model.histories(packed.batch(list(range(len(packed)))))
        law = NextEvents(forecaster.model, histories.condition, renormalise=True)
        return law, histories.gap.double().numpy() * law.unit

    tried = []
    law, gaps = law_of(parts[1])
    for step in (1e-3, 5e-3, 2e-2):
        drawn = law.langevin_sample(
            100, step=step, num_steps=500, sigma=0.1, generator=torch.Generator().manual_seed(0)
        )
        crps = float(metrics.crps_from_samples(drawn.double().numpy(), gaps, estimator="fair").mean())
        tried.append({"step": step, "num_steps": 500, "validation_crps": round(crps, 5)})
    best = min(tried, key=lambda row: row["validation_crps"])["step"]
    law, gaps = law_of(parts[2])
    generator = torch.Generator().manual_seed(1)
    started = time.process_time()
    drawn = law.langevin_sample(100, step=best, num_steps=2000, sigma=0.1, generator=generator).double().numpy()
    chain_seconds = time.process_time() - started
    started = time.process_time()
    fresh = NextEvents(forecaster.model, law.condition, renormalise=True)
    exact = fresh.sample(100, generator=generator)[0].double().numpy()
    exact_seconds = time.process_time() - started
    chain_crps = metrics.crps_from_samples(drawn, gaps, estimator="fair")
    exact_crps = metrics.crps_from_samples(exact, gaps, estimator="fair")
    levels = np.array(metrics.LEVELS_19)
    chain_cover = np.array([(gaps < np.quantile(drawn, q, axis=1)).mean() for q in levels])
    difference = chain_crps - exact_crps
    groups = np.repeat(np.arange(num_sequences), len(gaps) // num_sequences)
    error = metrics.bootstrap_error(lambda rows: float(difference[rows].mean()), groups)
    # A table of 512 nodes and its end; inversion adds up to six Newton steps of 4 + 1 evaluations for each quantile.
    exact_evaluations = NUM_PANELS * NODES_PER_PANEL + 1 + 6 * (NODES_PER_PANEL + 1) * 19
    entry = {
        "question": "Do exact quantiles need 100 times fewer head evaluations than Langevin, at no worse CRPS?",
        "data": f"hawkes3 (250 sequences train, 40 validate), {num_sequences} test sequences ({len(gaps)} events); "
            "step chosen on validation",
        "settings_tried": tried,
        "langevin": {
            "steps": 2000, "samples": 100, "step": best, "head_evaluations_per_event": 200_000,
            "crps": round(float(chain_crps.mean()), 5), "cpu_seconds": round(chain_seconds, 2),
            "calibration_score_19": round(float(np.sqrt(np.mean((chain_cover - levels) ** 2))), 5),
        },
        "exact": {
            "head_evaluations_per_event": exact_evaluations, "for": "19 quantiles",
            "crps_of_100_samples": round(float(exact_crps.mean()), 5), "cpu_seconds": round(exact_seconds, 2),
            "crps": round(float(law.crps(torch.from_numpy(gaps)).mean()), 5),
            "calibration_score_19": round(
                metrics.calibration_score(law.cdf(torch.from_numpy(gaps)[:, None]).squeeze(-1).double().numpy()), 5
            ),
        },
        "crps_difference_langevin_minus_exact": {"mean": round(float(difference.mean()), 5), "error": round(error, 5)},
    }  # fmt: skip
    print(json.dumps(entry, indent=1))
    record("langevin", entry)


EPOCH = {"sequences": 1000, "events": 60, "hidden_size": 32, "num_layers": 2, "num_heads": 2, "batch_size": 50}


def epoch(side: str, source: Path, repeats: int) -> None:
    """CPU seconds of a training epoch of THP on the same sequences at the same size, here and in EasyTPP 0.3.0."""
    import statistics

    seconds = _our_epochs(source, repeats) if side == "burnish" else _easytpp_epochs(source, repeats)
    entry = {"seconds": [round(s, 3) for s in seconds[1:]], "median": round(statistics.median(seconds[1:]), 3)}
    print(side, entry)
    with experiment.results(OUT, {"experiments": {}}) as everything:
        before = everything["experiments"].get(f"epoch_{source.stem}", {}).get("sides", {})
    sides = before | {side: entry | {"versions": experiment.versions("easy-tpp")}}
    ratio = None
    if {"burnish", "easytpp"} <= sides.keys():
        ratio = round(sides["easytpp"]["median"] / sides["burnish"]["median"], 2)
    record(
        f"epoch_{source.stem}",
        {
            "question": "How much faster is a training epoch of THP than in EasyTPP, same data, size, thread count?",
            "settings": EPOCH | {"note": "no recurrent layer, no extra heads; forward, backward and Adam step; "
                                 "burnish integrates with 12 nodes, EasyTPP with its default 20"},
            "sides": sides,
            "ratio_of_medians": ratio,
        },
    )  # fmt: skip


def _our_epochs(source: Path, repeats: int) -> list[float]:
    import torch

    from burnish.events import THP, EventDataset
    from burnish.events.model import Objective, TrainingStatistics
    from burnish.events.training import TrainingSettings, _one_epoch

    torch.set_num_threads(1)
    dataset = EventDataset.from_parquet(source)
    size = {"hidden_size": EPOCH["hidden_size"], "num_layers": EPOCH["num_layers"], "num_heads": EPOCH["num_heads"]}
    model = THP(dataset.num_marks, **size, intermediate_size=2 * EPOCH["hidden_size"], recurrent_size=0, heads="none")
    model.statistics = TrainingStatistics.of(dataset)
    packed = model.pack(dataset)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, foreach=True)
    settings = TrainingSettings(epochs=repeats + 1, batch_size=EPOCH["batch_size"])
    seconds = []
    for index in range(repeats + 1):
        started = time.process_time()
        _one_epoch(model, packed, Objective(), settings, optimizer, index)
        seconds.append(time.process_time() - started)
    print("burnish parameters", model.num_parameters)
    return seconds


def _easytpp_epochs(source: Path, repeats: int) -> list[float]:
    import easytpp_epoch

    return easytpp_epoch.epochs(source, repeats, EPOCH)


# -- tables of the docs ----------------------------------------------------------------------------------------------

LABELS = {
    "smurf-thp": "SMURF-THP", "thp": "THP", "smash": "SMASH", "lognormal-mixture": "log-normal mixture",
    "exponential-hawkes": "Hawkes MLE", "place-mixture": "place mixture",
}  # fmt: skip
COLUMNS = {
    "loglik": ("log-lik.", 4), "crps": ("CRPS", 4), "calibration_score_19": ("CS, 19 levels", 4),
    "calibration_score_upper": ("CS, levels >= 0.5", 4), "pit_ks": ("PIT KS", 4), "coverage_90": ("below 90 %", 3),
    "accuracy": ("type acc.", 4), "location_cs": ("place CS", 4), "energy_score": ("place energy", 4),
    "location_error": ("place error", 4),
}  # fmt: skip


def tables(results: dict[str, Any]) -> dict[str, str]:
    """Markdown for the pages, from the results file (see benchmarks/check.py)."""
    experiments = results["experiments"]
    made = {}
    for name in ("hawkes3", "hawkes2", "stackoverflow", "financial"):
        if name in experiments:
            made[name] = _score_table(experiments[name], list(COLUMNS)[:7])
    for name, entry in experiments.items():
        if name.startswith("smash_"):
            made[name] = _score_table(entry, list(COLUMNS))
    speed: list[list[str]] = []
    for name, entry in experiments.items():
        if name.startswith("epoch_") and entry["ratio_of_medians"] is not None:
            ours, theirs = entry["sides"]["burnish"]["median"], entry["sides"]["easytpp"]["median"]
            what = f"THP, CPU seconds a training epoch, {name.removeprefix('epoch_')}"
            speed.append([what, f"{ours:.2f}; EasyTPP {theirs:.2f} (ratio {entry['ratio_of_medians']})"])
    if "online" in experiments:
        times = experiments["online"]["cpu_milliseconds"]
        for part, label in (("observe", "one event"), ("quantile", "one quantile"), ("whole", "both")):
            value = f"{times[part]['median_ms']:.2f} ms median, {times[part]['p90_ms']:.2f} ms in nine of ten"
            speed.append([f"online, {label} (history 200, 4 layers, width 64)", value])
    if "langevin" in experiments:
        entry = experiments["langevin"]
        for side, key in (("langevin", "crps"), ("exact", "crps_of_100_samples")):
            part = entry[side]
            value = f"{part['head_evaluations_per_event']:,} evaluations an event, CRPS {part[key]:.4f}, "
            speed.append([f"{side} quantiles", f"{value}CS {part['calibration_score_19']:.4f}"])
        gap = entry["crps_difference_langevin_minus_exact"]
        speed.append(["CRPS, Langevin minus exact, paired", f"{gap['mean']:.4f} ± {gap['error']:.4f}"])
    if "drift" in experiments:
        entry = experiments["drift"]
        lines = []
        for level, sides in entry["levels"].items():
            for side in ("fixed", "adaptive"):
                value = sides[side]
                bound = f"{float(level):g} ± {sides['bound']:.4f}" if side == "adaptive" else ""
                lines.append([level, side, f"{value['coverage']:.3f}", f"{value['worst_window']:.3f}", bound])
        made["drift"] = experiment.table("level | quantiles | coverage | worst of the windows | bound", lines)
    made["speed"] = experiment.table("question | result", speed)
    return made


def _score_table(entry: dict[str, Any], names: list[str]) -> str:
    lines: list[list[str]] = []

    def cells(scores: dict[str, float], spread: dict[str, float] | None = None) -> list[str]:
        texts = []
        for name in names:
            value, digits = scores.get(name), COLUMNS[name][1]
            text = "" if value is None else "infinite" if math.isinf(value) else f"{value:.{digits}f}"
            if spread and spread.get(name):
                text += f" ± {spread[name]:.{digits}f}"
            texts.append(text)
        return texts

    if "truth" in entry:
        lines.append(["the true process", "", "", *cells(entry["truth"]), ""])
    grouped: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in entry["rows"]:
        objective = row["objective"]["objective"]
        if objective != "likelihood":
            objective += ", log time" if row["objective"].get("time_coordinate", "log") == "log" else ", raw gap"
        grouped.setdefault((LABELS[row["model"]], objective), []).append(row)
    for (model, objective), rows in grouped.items():
        means, spread = {}, {}
        for name in names:
            values = [row["scores"][name] for row in rows if name in row["scores"]]
            if values:
                means[name] = sum(values) / len(values)
            if len(values) > 1:
                spread[name] = math.sqrt(sum((v - means[name]) ** 2 for v in values) / (len(values) - 1))
        seconds = sum(row["fit_cpu_seconds"] for row in rows) / len(rows)
        lines.append([model, objective, str(len(rows)), *cells(means, spread), f"{seconds:.0f}"])
    for baseline, scores in entry.get("baselines", {}).items():
        lines.append([baseline, "", "", *cells(scores), ""])
    titles = ["forecast", "objective", "seeds", *(COLUMNS[name][0] for name in names), "CPU s"]
    return experiment.table(titles, lines)


def main() -> None:
    parser = experiment.Command(__file__, __doc__)
    parser.add_argument("experiment", nargs="?")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dataset", default="crime_atlanta")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--presets", nargs="+", default=["hawkes3", "hawkes2"])
    parser.add_argument("--only", nargs="+", default=["likelihood"], help="which models (see the script)")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--hidden-size", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--num-events", type=int, default=600)
    parser.add_argument("--train-sequences", type=int, help="learn from so many sequences [default: all]")
    parser.add_argument("--test-sequences", type=int, help="test on so many sequences [default: all]")
    parser.add_argument("--state", type=Path, help="directory for the states of fits; a run that was cut off goes on")
    parser.add_argument("--side", choices=["burnish", "easytpp"])
    a = parser.read()
    global OUT, STATES
    OUT, STATES = a.out, a.state
    if a.experiment == "hawkes":
        hawkes(a.seeds, a.presets, a.only)
    elif a.experiment in ("stackoverflow", "financial"):
        size = {"hidden_size": a.hidden_size, "num_layers": 2, "intermediate_size": 2 * a.hidden_size,
                "recurrent_size": a.hidden_size}  # fmt: skip
        batch = 32 if a.experiment == "stackoverflow" else 4
        real(
            a.data,
            a.experiment,
            a.seeds,
            {"epochs": a.epochs, "batch_size": batch, "lr": 3e-3, "patience": 3},
            size,
            a.only,
            (a.train_sequences, a.test_sequences),
        )
    elif a.experiment == "smash":
        smash(a.data, a.dataset, a.seeds, a.epochs, a.num_events)
    elif a.experiment == "places":
        places(a.data, a.dataset, a.seeds, a.num_events)
    elif a.experiment == "online":
        online(a.repeats)
    elif a.experiment == "drift":
        drift(250)
    elif a.experiment == "langevin":
        langevin(2)
    elif a.experiment == "epoch":
        epoch(a.side, a.data, 5)
    else:
        parser.error("name an experiment")


if __name__ == "__main__":
    main()
