"""What people call the metrics of the ledger: on model cards, on the terminal, in reports and in the docs."""

NAMES = {
    "bytes_on_disk": "Size on disk",
    "weight_bytes_per_token": "Weight bytes per token",
    "num_parameters": "Parameters",
    "num_active_parameters": "Active parameters",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "kl_divergence": "KL divergence",
    "top1_agreement": "Same top token",
    "perplexity_second": "Perplexity, second text",
    "bits_per_byte_second": "Bits per byte, second text",
    "kl_divergence_second": "KL divergence, second text",
    "top1_agreement_second": "Same top token, second text",
    "perplexity_third": "Perplexity, third text",
    "bits_per_byte_third": "Bits per byte, third text",
    "kl_divergence_third": "KL divergence, third text",
    "top1_agreement_third": "Same top token, third text",
    "longppl": "LongPPL",
    "key_tokens": "Key tokens",
    "prefill_speed": "Prefill speed",
    "decode_speed": "Decode speed",
    "peak_memory": "Peak memory",
    "pair_accuracy": "Pairs ranked right",
    "pair_log_loss": "Log loss of pairs",
    "overconfidence": "Confidence above accuracy",
    "calibration_error": "Calibration error",
    "reward_prefers_longer": "Prefers the longer answer",
    "labels_prefer_longer": "Labels prefer the longer",
    "accuracy_longer_chosen": "Right where the longer is better",
    "accuracy_shorter_chosen": "Right where the shorter is better",
    "mean_margin": "Mean margin",
}
"""{name in the ledger: name for people}"""


def called(name: str) -> str:
    """The name for people; of a metric that is not known here, the ledger's in words."""
    return NAMES.get(name) or name.replace("_", " ")
