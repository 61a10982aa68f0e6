import importlib.util
from pathlib import Path


def test_the_example_runs_small(capsys) -> None:
    path = Path(__file__).parents[2] / "examples" / "events_forecast.py"
    spec = importlib.util.spec_from_file_location("events_forecast", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(num_sequences=30, epochs=1)
    assert "log-likelihood" in capsys.readouterr().out
