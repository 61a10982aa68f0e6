"""`burnish reason serve`: an OpenAI-like server in front of another one, or of a checkpoint in this process."""

from burnish.reason.serve.frame import Backend, application, listening, serve
from burnish.reason.serve.guard import Guard
from burnish.reason.serve.local import Local, Writer
from burnish.reason.serve.upstream import Upstream

__all__ = ["Backend", "Guard", "Local", "Upstream", "Writer", "application", "listening", "serve"]
