"""Better answers from any OpenAI-like server, with every token accounted for: strategies over named, durable calls.

    from burnish.reason import Endpoint, Journal, Pool, Session, strategy

    async with Pool([Endpoint("http://127.0.0.1:8000/v1", "qwen")], Journal("runs/a")) as pool:
        rsa = strategy("rsa(n=8,k=4,loops=3)")
        result = await rsa([{"role": "user", "content": "..."}], Session(pool, "problem-1", rsa.label))

Stands on core and verify; neither torch nor transformers is imported.
"""

from typing import TYPE_CHECKING

from burnish.core.lazy import lazy

if TYPE_CHECKING:
    from burnish.reason.calls import BudgetSpent, Endpoint, Price, Reply, UpstreamError, Usage
    from burnish.reason.journal import Journal, JournalReader
    from burnish.reason.limits import Budget
    from burnish.reason.pool import Pool
    from burnish.reason.session import Answers, Result, Session
    from burnish.reason.strategies import STRATEGIES, strategy
    from burnish.reason.strategies.base import Strategy

__all__ = [
    "STRATEGIES",
    "Answers",
    "Budget",
    "BudgetSpent",
    "Endpoint",
    "Journal",
    "JournalReader",
    "Pool",
    "Price",
    "Reply",
    "Result",
    "Session",
    "Strategy",
    "UpstreamError",
    "Usage",
    "strategy",
]


_HOMES = {
    "STRATEGIES": ".strategies",
    "Answers": ".session",
    "Budget": ".limits",
    "BudgetSpent": ".calls",
    "Endpoint": ".calls",
    "Journal": ".journal",
    "JournalReader": ".journal",
    "Pool": ".pool",
    "Price": ".calls",
    "Reply": ".calls",
    "Result": ".session",
    "Session": ".session",
    "Strategy": ".strategies.base",
    "UpstreamError": ".calls",
    "Usage": ".calls",
    "strategy": ".strategies",
}
__getattr__, __dir__ = lazy(__name__, _HOMES)
