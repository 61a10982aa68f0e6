"""All commands, also those that the command line adds when they are asked for."""

from burnish.cli import add_within
from burnish.methods import VERBS

for _verb in VERBS.values():
    add_within(_verb.words[0])
