"""RULER (2024, arXiv:2404.06654): tasks of any length whose answers are known, scored by where the evidence stands.

settings  what is measured
words     words out of a text that ships with the package
tasks     the prompts
letters   key-value retrieval in single characters, for small models
prompt    the one place that decides about template, answer prefix and beginning token
score     the metric, and what is said by depth
answering a model's answers, by sparse attention if asked for
measure   a model on all of them, to be gone on with
"""
