"""Heads where transformers has none for a family: one linear over the last states of its base model.

    states (rows, tokens, d) ──> (rows, d) ──score──> (rows, classes)          classification
        decoder: the last real token; encoder: the mean over tokens; two stacks: the decoder's state after it has read the input
        again, as BART's classifiers do
    states (rows, tokens, d) ──lm_head, tied where embeddings are──> (rows, tokens, vocabulary)
                                                                               language: the text part of Qwen2-VL and its like

transformers reads such a model as no class of its own, so nothing that is written for it (merged, peft) can hold the head.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dollartune.backbones.forward_inputs import takes
from dollartune.backbones.marks import decoder_start
from dollartune.backbones.token_table import output_head, vocabulary_size
from dollartune.errors import UserError

if TYPE_CHECKING:
    from dollartune.backbones.anatomy import BackboneKind
    from dollartune.backbones.kind import Objective


def mapped_class(config_class: type) -> Any | None:
    """The class that the library's mapping of base models has for a configuration."""
    from transformers import AutoModel

    try:
        return AutoModel._model_mapping.get(config_class, None)
    except ValueError:  # it names a class that this version does not have (Voxtral Realtime)
        return None


def base_class(config_class: type) -> Any | None:
    """The class of a family's base model: by the library's mapping, else beside its configuration, where the text part of a model
    with pictures is (Qwen2.5-Omni, Llama 3.2 Vision); None where there is none."""
    from transformers import PreTrainedModel

    mapped = mapped_class(config_class)
    if isinstance(mapped, type):
        return mapped
    try:
        module = importlib.import_module(config_class.__module__.replace(".configuration_", ".modeling_"))
    except ImportError:
        return None
    bases = [
        value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, PreTrainedModel) and getattr(value, "config_class", None) is config_class
        and name.endswith("Model") and not name.endswith("PreTrainedModel")
    ]  # fmt: skip
    return min(bases, key=lambda value: len(value.__name__), default=None)


def class_with_head(config_class: type, kind: BackboneKind, objective: Objective) -> Any | None:
    """A model class with that head; None where the family has no base model of text, or needs more than one linear."""
    from transformers import GenerationMixin, PreTrainedModel

    key = (config_class, kind, objective)
    if key in _MADE:
        return _MADE[key]
    base = base_class(config_class)
    if base is None or kind == "vision" or (objective == "language" and kind != "decoder"):
        return None
    # the family's own class knows where a checkpoint has the base model, and how weights are drawn
    family_class = next(
        (c for c in base.__mro__[1:] if issubclass(c, PreTrainedModel) and c is not PreTrainedModel), None
    )
    if family_class is None:
        return None
    prefix = family_class.base_model_prefix or "model"
    facts: dict[str, object] = {"base_model_prefix": prefix, "base_class": base, "kind": kind, "__module__": __name__}
    name = config_class.__name__.removesuffix("Config")
    if objective == "classification":
        _MADE[key] = type(f"{name}WithClasses", (_WithClasses, family_class), facts)
        return _MADE[key]
    _MADE[key] = type(f"{name}WithLanguageHead", (_WithLanguageHead, family_class, GenerationMixin), facts)
    return _MADE[key]


_MADE: dict[tuple[type, str, str], Any] = {}
"""Each class once: a model of it that was copied or loaded again is of the same class."""


def need_known_head(model: Any) -> None:
    """Refuses what others are to read.

    Raises:
        UserError: the head is ours.
    """
    if isinstance(model, _OwnHead):
        config: Any = model.config  # type: ignore[attr-defined]
        raise UserError(
            f"transformers has no class of {config.model_type} with this head, so nothing that it reads can hold it.",
            hint="Serve it here: export --format dollartune.",
        )


class _OwnHead:
    """What these classes share; the family's own `PreTrainedModel` comes behind it."""

    base_class: Any
    kind: str

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        made: Any = self
        setattr(made, made.base_model_prefix, self.base_class(config))
        self._make_head(made, config)
        made.post_init()

    def _make_head(self, made: Any, config: Any) -> None:
        raise NotImplementedError

    @classmethod
    def from_config(cls, config: Any) -> Any:
        """As the library's auto classes make a model."""
        return cls._from_config(config)  # type: ignore[attr-defined]

    @classmethod
    def is_custom_code(cls) -> bool:
        """Read as the library's own: of custom code it neither makes values that no checkpoint holds (FalconH1's multipliers)
        nor converts a checkpoint's names and shapes (experts)."""
        return False

    def _base_output(self, given: dict[str, object]) -> Any:
        """Of the base model: not every family takes every input, and what is not given need not be named."""
        made: Any = self
        base = getattr(made, made.base_model_prefix)
        return base(**{key: value for key, value in given.items() if value is not None})


class _WithClasses(_OwnHead):
    reads_decoder_ids = True
    reads_again = True
    """Whether the decoder of two stacks reads the input, too; else its start token alone."""

    def _make_head(self, made: Any, config: Any) -> None:
        made.num_labels = config.num_labels
        base = getattr(made, made.base_model_prefix)
        # Classes are read off states, and some base models give logits (FSMT's).
        if (inside := output_head(base)) is not None:
            made.reads_again = getattr(inside, "out_features", 0) == vocabulary_size(base)  # of one vocabulary
            base.set_submodule(next(name for name, module in base.named_modules() if module is inside), nn.Identity())
        made.score = nn.Linear(config.get_text_config().hidden_size, config.num_labels, bias=False)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        **more: Any,
    ) -> Any:
        """Scores of classes, (rows, classes)."""
        from transformers.modeling_outputs import SequenceClassifierOutputWithPast

        made: Any = self
        # What it gives holds no cache, and some base models cannot make one (layers of linear attention alone).
        keep = False if takes(getattr(made, made.base_model_prefix), "use_cache") else None
        given: dict[str, Any] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "inputs_embeds": inputs_embeds,
        }
        given |= {"use_cache": keep, **more}
        decoding = self.kind == "encoder_decoder"
        if decoding and input_ids is not None and "decoder_input_ids" not in given:
            start = torch.full_like(input_ids[:, :1], decoder_start(made))
            given["decoder_input_ids"] = torch.cat([start, input_ids[:, :-1]], 1) if self.reads_again else start
        states: Tensor = self._base_output(given)[0]
        mask = attention_mask
        if mask is None or mask.shape[1] != states.shape[1]:  # of the encoder's input alone
            mask = torch.ones(states.shape[:2], device=states.device)
        if self.kind != "encoder":
            # by the mask: padding may be on either side
            positions = torch.arange(states.shape[1], device=states.device)
            last = (mask.to(positions.dtype) * positions).argmax(-1)
            pooled = states[torch.arange(len(states), device=states.device), last]
        else:
            weights = mask.to(states.dtype)[:, :, None]
            pooled = (states * weights).sum(1) / weights.sum(1)
        return SequenceClassifierOutputWithPast(logits=made.score(pooled))


class _WithLanguageHead(_OwnHead):
    first_position = 0
    """What the base calls a row's first place."""

    def _make_head(self, made: Any, config: Any) -> None:
        made.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        tokens = made.get_input_embeddings()
        name = next(name for name, module in made.named_modules() if module is tokens)
        made._tied_weights_keys = {"lm_head.weight": f"{name}.weight"}
        # fairseq's positions (Kosmos-2) begin behind the padding's own, while everybody who gives some begins at 0
        for module in made.modules():
            if hasattr(module, "create_position_ids_from_input_ids"):
                made.first_position = int(module.padding_idx) + 1

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **more: Any,
    ) -> Any:
        """Logits of the next token, (rows, tokens, vocabulary)."""
        from transformers.modeling_outputs import CausalLMOutputWithPast

        made: Any = self
        if position_ids is not None:
            position_ids = position_ids + made.first_position
        given: dict[str, object] = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
        }
        given |= {"past_key_values": past_key_values, "inputs_embeds": inputs_embeds, "use_cache": use_cache, **more}
        output = self._base_output(given)
        states: Tensor = output[0]
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        states = states[:, logits_to_keep if isinstance(logits_to_keep, Tensor) else kept]
        return CausalLMOutputWithPast(
            logits=made.lm_head(states),
            past_key_values=getattr(output, "past_key_values", None),
            hidden_states=getattr(output, "hidden_states", None),
        )
