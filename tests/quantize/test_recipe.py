"""The room's recipe, on a small model and with little text."""

from pathlib import Path

import pytest
import yaml

from burnish.core.kinds import Weights
from burnish.quantize.stage import Quantize

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "yaqa_3bit.yaml"
NODES = {node["name"]: node for node in yaml.safe_load(RECIPE.read_text())["nodes"]}


@pytest.mark.parametrize("name", NODES)
@pytest.mark.slow
def test_every_node_of_the_recipe_makes_a_checkpoint(model, texts, tmp_path, name):
    settings = {key: value for key, value in NODES[name].items() if key not in ("name", "from", "stage", "calibration")}
    if "tokens" in settings:
        settings["tokens"] = 1024
    stage = Quantize.parse(settings, where=str(RECIPE))
    assert stage.plan(model.plan()).weights is Weights.PACKED
    assert (stage(model, calibration=texts).save(tmp_path / "out") / "model.safetensors").is_file()
