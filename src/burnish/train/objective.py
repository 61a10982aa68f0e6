"""`objective`: what a training minimises beside, or in place of, the plain next-token loss.

    view=skip                      a second view under other positions must predict the same
    weights=kl,window=2048,sinks=4 tokens count by what the context beyond a window changes
    focal=1                        tokens count by (1 - p)^1, p being how likely the model finds them
    drop_top=0.99                  from the second pass over the data on, what is likelier does not count

The first two are for long contexts and may stand in one text, and so may the last two. Reading settings imports no
torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from burnish.core.errors import SettingsError
from burnish.core.settings import Settings

if TYPE_CHECKING:
    from burnish.core.kinds import Plan
    from burnish.train.maths.token_weights import Weighting

DEFAULTS: dict[str, tuple[float, float]] = {
    "kl": (0.5, 5.0),
    "lsd": (0.5, 5.0),
    "js": (0.5, 5.0),
    "longce": (0.0, 5.0),
    "dense": (0.75, float("inf")),
    "sparse": (0.0, float("inf")),
    "ppmi": (0.0, float("inf")),
    "npmi": (0.0, float("inf")),
}
"""{mode: (floor, cap)}, those of the published programs."""

OF_VIEWS = ("view_weight", "view_prob", "view_only", "max_skip")
OF_WEIGHTS = ("window", "sinks", "floor", "cap", "keep", "shift", "gate", "prefix", "cache")
RELATIVE = tuple(mode for mode in DEFAULTS if mode != "longce")
"""Those whose weights are relative to the mean of their document."""
OF_MODES = {"keep": ("sparse",), "shift": ("ppmi", "npmi"), "floor": RELATIVE, "prefix": RELATIVE}
"""Settings that some ways to weigh alone look at."""
SEEN = ("full_attention", "sliding_attention")
"""Kinds of layers that look at other tokens by a mask alone."""
BY_LENGTH = ("dynamic", "longrope")
"""Kinds of RoPE whose frequencies follow from the largest position of a batch, which differs between views."""


class Objective(Settings):
    """What is minimised, with the numbers of views and weights."""

    view: Literal["none", "skip", "cyclic"] = Field(default="none", description="second view of every document")
    view_weight: float = Field(default=1.0, gt=0, description="of the divergence of the view, beside the loss")
    view_prob: float = Field(default=1.0, gt=0, le=1, description="share of the steps that have the second view")
    view_only: bool = Field(
        default=False, description="the next-token loss under the view's positions, and no second pass (PoSE)"
    )
    max_skip: int | None = Field(default=None, ge=1, description="largest gap; the document's length if not given")
    weights: Literal["none", "kl", "lsd", "js", "longce", "dense", "sparse", "ppmi", "npmi"] = Field(
        default="none", description="how much a token counts"
    )
    window: int = Field(default=2048, ge=1, description="tokens of the short context")
    sinks: int = Field(default=4, ge=0, description="first tokens of a document that the short context keeps")
    floor: float | None = Field(default=None, ge=0, le=1, description="smallest weight")
    cap: float | None = Field(default=None, gt=0, description="largest signal, nats; of longce the largest weight")
    keep: float = Field(default=0.2, gt=0, le=1, description="sparse: share of the tokens that count")
    shift: float = Field(default=1.0, ge=1, description="ppmi, npmi: divides the ratio of probabilities")
    gate: bool = Field(default=False, description="only tokens whose label gains by the context have a signal")
    prefix: Literal["one", "formula"] = Field(default="one", description="what tokens inside the first window weigh")
    cache: bool = Field(
        default=False, description="weights of a document are computed when it is first seen, and kept for later passes"
    )
    focal: float = Field(default=0.0, ge=0, le=10, description="exponent of 1 - p in a token's weight; 0 for none")
    drop_top: float | None = Field(
        default=None, gt=0, lt=1, description="largest p that counts after the first pass over the data"
    )

    @classmethod
    def of(cls, text: str) -> Objective:
        """From `name=value,name=value`.

        Raises:
            SettingsError: no such setting, a value that it cannot have, or nothing that is asked for.
        """
        found: dict[str, Any] = {}
        for part in text.split(","):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals or not name or not value:
                raise SettingsError(
                    f"{part!r} is no setting", where="objective", fix="write view=skip,weights=kl, or focal=1"
                )
            if name in found:
                raise SettingsError(f"{name} stands there twice", where="objective", fix="leave one out")
            found[name] = value
        return cls.parse(found, where="objective")

    @model_validator(mode="after")
    def _fits_together(self) -> Objective:
        by_prediction = bool(self.focal) or self.drop_top is not None
        if not self.is_long and not by_prediction:
            raise ValueError(
                "nothing is asked for: give view=skip, weights=kl, focal=1 or drop_top=0.99, or no objective"
            )
        if self.is_long and by_prediction:
            name = "focal" if self.focal else "drop_top"
            raise ValueError(f"{name} does not go with view and weights, which are for long contexts")
        if self.view == "none":
            self._refuse_of(OF_VIEWS, "view=skip")
        if self.weights == "none":
            self._refuse_of(OF_WEIGHTS, "weights=kl")
        for name, modes in OF_MODES.items():
            if name in self.model_fields_set and self.weights not in modes:
                raise ValueError(f"{name} counts for nothing with weights={self.weights}, but with {', '.join(modes)}")
        if self.view == "cyclic" and self.max_skip is not None:
            raise ValueError("max_skip is of view=skip, and the cyclic view has no gap")
        if self.view_only and (self.weights != "none" or "view_weight" in self.model_fields_set):
            given = "weights" if self.weights != "none" else "view_weight"
            raise ValueError(f"{given} does not go with view_only, which has one pass and one loss")
        if self.weights != "none" and self.sinks >= self.window:
            raise ValueError(f"sinks is {self.sinks}, which is not below the window of {self.window} tokens")
        return self

    @property
    def is_long(self) -> bool:
        """Whether it is one for long contexts, with masks and positions of its own."""
        return self.view != "none" or self.weights != "none"

    def _refuse_of(self, names: tuple[str, ...], owner: str) -> None:
        given = sorted(self.model_fields_set & set(names))
        if given:
            raise ValueError(f"{given[0]} counts for nothing without {owner}")

    @property
    def weighting(self) -> Weighting:
        """As the mathematics takes it; there are weights."""
        from burnish.train.maths.token_weights import Weighting

        assert self.weights != "none", "asked for only where tokens are weighted"
        floor, cap = DEFAULTS[self.weights]
        return Weighting(
            self.weights,
            self.gate,
            self.prefix,
            floor if self.floor is None else self.floor,
            cap if self.cap is None else self.cap,
            self.keep,
            self.shift,
        )

    def check(self, config: Any, context: int) -> None:
        """Refuses a model or a context that views and weights do not fit, as far as a configuration tells.

        Raises:
            SettingsError: no RoPE, layers that a mask does not reach, positions beyond the table, no room for a window.
        """
        if not self.is_long:
            return
        text = config.get_text_config()
        if self.weights != "none" and self.window + self.sinks >= context:
            raise SettingsError(
                f"a window of {self.window:,} tokens and {self.sinks} sinks hides nothing of a context of {context:,}, "
                "so every weight would be one",
                where="objective",
                fix=f"use a window below {max(1, context - self.sinks):,}, or a longer context",
            )
        kinds = set(getattr(text, "layer_types", None) or ())
        if strange := sorted(kinds - set(SEEN)):
            raise SettingsError(
                f"the model has layers of the kind {strange[0]}, which look at other tokens without a mask",
                where="objective",
                fix="leave the objective out",
            )
        window = getattr(text, "sliding_window", None)
        slides = "sliding_attention" in kinds if kinds else getattr(text, "use_sliding_window", True)
        if window is not None and slides and window < context:
            raise SettingsError(
                f"the model has layers that see {window:,} tokens, and masks of views and windows would let them see "
                f"all {context:,}",
                where="objective",
                fix=f"use a context of at most {window:,}, or leave the objective out",
            )
        if self.view != "none":
            self._check_positions(text, context)

    def _check_positions(self, text: Any, context: int) -> None:
        rope = getattr(text, "rope_parameters", None)
        if not rope:
            raise SettingsError(
                f"{text.model_type} has no rotary positions (RoPE), and a view is other positions",
                where="objective",
                fix="leave view out",
            )
        each = [part for part in rope.values() if isinstance(part, dict)] or [rope]
        by_length = [part["rope_type"] for part in each if part.get("rope_type") in BY_LENGTH]
        if by_length:
            raise SettingsError(
                f"RoPE of type {by_length[0]} takes its frequencies from the largest position, so two views would "
                "differ in all of them",
                where="objective",
                fix="use linear, yarn or llama3, or an enlarged rope_theta",
            )
        longest = getattr(text, "max_position_embeddings", None)
        gap = context if self.max_skip is None else self.max_skip
        if self.view == "skip" and longest is not None and context - 1 + gap >= longest:
            room = longest - context
            raise SettingsError(
                f"a gap of up to {gap:,} in a context of {context:,} reaches position {context - 1 + gap:,}, but the "
                f"model's end at {longest - 1:,}",
                where="objective",
                fix=f"use max_skip={room}, or scale its RoPE first" if room > 0 else "use a shorter context",
            )

    def overhead(
        self,
        plan: Plan,
        context: int,
        *,
        skips: bool,
        checkpointing: bool = False,
        adapters: bool = False,
        weighed: float = 1.0,
    ) -> float:
        """What a step costs more, as a share of a plain step (`burnish.train.maths.step_cost`).

        Args:
            plan: of the model.
            context: tokens of a row.
            skips: whether attention leaves out what a mask hides; a dense mask does not.
            checkpointing, adapters: as in the training.
            weighed: share of the steps that compute weights of tokens; the others read what is kept.
        """
        from burnish.arch import num_active_parameters
        from burnish.train.maths.step_cost import Decoder, overhead

        text = plan.config.get_text_config()
        head = text.vocab_size * text.hidden_size
        embeddings = head if text.tie_word_embeddings else 2 * head
        if not self.is_long:  # the head once more, of forward and backward passes that are three of all weights
            return head / (3 * (num_active_parameters(plan) - embeddings + head))
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        decoder = Decoder(
            layer_weights=num_active_parameters(plan) - embeddings,
            head_weights=head,
            attention_width=text.num_hidden_layers * text.num_attention_heads * width,
        )
        return overhead(
            decoder,
            context,
            window=self.window if self.weights != "none" else None,
            sinks=self.sinks,
            weights_share=weighed,
            view_share=self.view_prob if self.view != "none" and not self.view_only else 0.0,
            skips=skips,
            checkpointing=checkpointing,
            adapters=adapters,
        )
