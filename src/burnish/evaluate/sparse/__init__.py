"""What sparse attention loses: mechanisms by name, laid over the attention of a stock model.

spec        `sink:64+local:256+quest:0.1,page=16`, read and checked; importing it costs no torch
mechanisms  what each of them chooses, with what it keeps of a prompt
attention   the function that transformers calls, and what is counted there
channels    Double Sparsity's channels, measured on a text

Everything is computed with all keys and then masked: what is lost is exact, and nothing is saved.
"""
