from burnish.core.page.numbers import MINUS, SPACE
from burnish.report.metrics import METRICS, metric
from burnish.report.run import Value


def plain(text: str) -> str:
    return text.replace(SPACE, " ").replace(MINUS, "-")


def test_a_value_has_the_digits_that_its_interval_supports():
    assert METRICS["perplexity"].write(Value(25.1329, 24.61, 25.69)) == "25.13"


def test_a_share_is_written_in_per_cent():
    assert plain(METRICS["top1_agreement"].write(Value(0.7719, 0.766, 0.778))) == "77.19 %"


def test_an_unknown_metric_keeps_the_name_and_unit_of_the_ledger():
    unknown = metric("blimp_accuracy")
    assert (unknown.label, plain(unknown.write(Value(81.25, unit="points")))) == ("blimp accuracy", "81.25 points")
