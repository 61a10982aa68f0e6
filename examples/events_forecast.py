"""From simulated alarms to a calibrated forecast of the next one: fit, measure, ask, and follow a live stream."""

from burnish.events import EventForecaster, SmurfTHP, simulate_hawkes
from burnish.events.hawkes import PRESETS


def main(num_sequences: int = 200, epochs: int = 8) -> EventForecaster:
    data = simulate_hawkes(PRESETS["hawkes3"], num_sequences, num_events=40, seed=0)
    train, validation, test = data.split((0.8, 0.1, 0.1), seed=0)

    forecaster = EventForecaster(SmurfTHP(num_marks=data.num_marks, hidden_size=32, recurrent_size=32))
    forecaster.fit(train, validation, epochs=epochs, seed=0)

    result = forecaster.score(test, bootstrap=50)
    print(f"log-likelihood {result.scores['loglik']:.3f} ± {result.errors['loglik']:.3f} nats an event")
    print(f"90 % quantiles cover {result.scores['coverage_90']:.3f}; empirical quantiles and Poisson beside:")
    for name, scores in result.baselines.items():
        print(f"  {name}: CRPS {scores['crps']:.3f} (model {result.scores['crps']:.3f})")

    stream = forecaster.stream()
    for time, mark in [(0.0, 0), (0.4, 1), (2.1, 1)]:
        stream.observe(time, mark)
    law = stream.next_event()
    print("half of the waits end within", round(law.quantile(0.5), 2))
    print("after waiting 1.0 already, within", round(stream.quantile(0.5, elapsed=1.0), 2), "more")
    print("types:", {name: round(p, 2) for name, p in law.mark_probs().items()})
    return forecaster


if __name__ == "__main__":
    main()
