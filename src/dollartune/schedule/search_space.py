"""What a search may try of one method: the grid that the study lists, or the method's own space."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

from dollartune.errors import UserError
from dollartune.methods.registry import build_method, method_class
from dollartune.methods.space import Choice, Space, space_in_words
from dollartune.methods.spelling import normalized, parse_call
from dollartune.trials.trial import Trial, Variant, room_for_virtual_tokens

CANDIDATE = "candidate"
"""Name of the only hyperparameter of a grid: the index of a variant in it."""


@dataclass(frozen=True)
class SearchSpace:
    """Settings of one method, or of one combination of methods.

    Examples:
        >>> space.space                      # {"lr": LogUniform(5e-05, 0.005), "rank": Choice(2, 4, 8, 16)}
        >>> space.variant({"lr": 1e-3, "rank": 4}).label
    """

    group: str
    variants: tuple[Variant, ...]
    """As the study lists them: several are a grid, one is where a search begins."""
    space: Mapping[str, Space]
    """Ranges by hyperparameter (`lora.rank` in a combination); empty where there is nothing to choose."""
    _made: dict[str, Variant] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Variants by their values: a search asks for all that it has tried before each decision."""

    @property
    def grid(self) -> bool:
        return len(self.variants) > 1

    @property
    def most(self) -> int | None:
        """How many different settings there are; None if that is without end."""
        count = 1
        for space in self.space.values():
            if not isinstance(space, Choice):
                # A continuous range has no end.
                return None
            count *= len(space.options)
        return count

    @property
    def first(self) -> list[dict[str, Any]]:
        """Settings to begin with: all of a grid in the order written, else the method's defaults."""
        if self.grid:
            return [{CANDIDATE: index} for index in range(len(self.variants))]
        defaults = dict(self._settings(self.variants[0]))
        return [{name: defaults[name] for name, space in self.space.items() if _inside(defaults[name], space)}]

    def variant(self, values: Mapping[str, Any]) -> Variant:
        """The variant that a proposal means.

        Raises:
            UserError: settings that the method refuses together.
        """
        if self.grid:
            return self.variants[int(values[CANDIDATE])]
        if not values:
            return self.variants[0]
        key = repr(sorted(values.items()))  # options may be lists, which have no hash
        if key not in self._made:
            self._made[key] = self._build(values)
        return self._made[key]

    def _build(self, values: Mapping[str, Any]) -> Variant:
        several = len(self.variants[0].methods) > 1
        built = []
        for method in self.variants[0].build():
            # Alone a setting keeps its plain name, so that records of a method and its page speak of the same one.
            prefix = f"{method.name}." if several else ""
            chosen = {n.removeprefix(prefix): v for n, v in values.items() if n.startswith(prefix)}
            built.append(build_method({"method": method.name, **method.config.model_dump(), **chosen}))
        return Variant.of(built, self.group)

    def most_tokens(self) -> int:
        """Most virtual tokens that any of its settings puts before an input."""
        if self.grid:
            return max(_tokens(variant) for variant in self.variants)
        stated = _tokens(self.variants[0])
        chosen = {
            name: space.options for name, space in self.space.items()
            if name.split(".")[-1] == "tokens" and isinstance(space, Choice)
        }  # fmt: skip
        defaults = dict(self._settings(self.variants[0]))
        return stated + sum(max(0, int(max(options)) - int(defaults[name])) for name, options in chosen.items())

    def _settings(self, variant: Variant) -> list[tuple[str, Any]]:
        several = len(variant.methods) > 1
        return [
            (f"{method.name}.{name}" if several else name, value)
            for method in variant.build()
            for name, value in method.config.model_dump().items()
        ]


def most_virtual_tokens(trials: Sequence[Trial], spaces: Sequence[SearchSpace]) -> int:
    """Places that stay free in every input, for whatever prompts and prefixes the study's trials and its search put there."""
    listed = room_for_virtual_tokens(trial.variant for trial in trials)
    return max([listed, *(space.most_tokens() for space in spaces)])


def candidates(
    entries: Sequence[Any], trials: Sequence[Trial], fits: Callable[[Trial], bool] | None = None
) -> list[SearchSpace]:
    """What may be tried of each of a study's methods, in the order written.

    Args:
        entries: the study's `methods:`.
        trials: its trials, from which the variants that make sense on its backbones are taken.
        fits: whether a trial's settings make sense on its backbone; ranges are narrowed to what does on all of them, so that
            backbones are compared by the same ranges.
    """
    groups: dict[str, dict[Variant, None]] = {}
    # Trials that differ in scale and seed alone have the same ranges.
    cases: dict[str, dict[tuple[int, int], Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.variant.group, {})[trial.variant] = None
        cases.setdefault(trial.variant.group, {}).setdefault((trial.task_index, trial.backbone_index), trial)
    stated: dict[str, set[str]] = {}
    for entry in entries:
        group, names = _stated(entry)
        stated.setdefault(group, set()).update(names)
    spaces = []
    for group, variants in groups.items():
        listed = tuple(variants)
        space: dict[str, Space] = {CANDIDATE: Choice(*range(len(listed)))} if len(listed) > 1 else {}
        if len(listed) == 1:
            several = len(listed[0].methods) > 1
            for method in listed[0].build():
                named = {f"{method.name}.{key}" if several else key: range_ for key, range_ in method.search.items()}
                # What the study states is not searched: the user has decided it.
                space |= {name: range_ for name, range_ in named.items() if name not in stated.get(group, set())}
        found = SearchSpace(group, listed, space)
        spaces.append(found if fits is None or found.grid else _narrowed(found, list(cases[group].values()), fits))
    return spaces


def _narrowed(space: SearchSpace, trials: Sequence[Trial], fits: Callable[[Trial], bool]) -> SearchSpace:
    """The space without options that do not fit one of these trials' backbones: a rank above the width, layers that are not
    there."""

    def possible(values: Mapping[str, Any]) -> bool:
        try:
            variant = space.variant(values)
        except UserError:
            return False
        return all(fits(replace(trial, variant=variant)) for trial in trials)

    choices = {name: range_.options for name, range_ in space.space.items() if isinstance(range_, Choice)}
    kept = {name: [one for one in options if possible({name: one})] for name, options in choices.items()}
    # A size must fit wherever else the method may be put: a rank of 64 fits an MLP and no head of 32.
    for name, options in kept.items():
        others = {other: values for other, values in kept.items() if other != name and values}
        if all(isinstance(one, int) for one in options):
            places = [dict(zip(others, chosen, strict=True)) for chosen in product(*others.values())]
            kept[name] = [one for one in options if all(possible({**place, name: one}) for place in places)]
    left = {
        name: Choice(*kept[name]) if name in kept else range_
        for name, range_ in space.space.items()
        if name not in kept or kept[name]
    }
    return replace(space, space=left)


def searched_in_words(
    entries: Sequence[Any], trials: Sequence[Trial], fits: Callable[[Trial], bool] | None = None
) -> list[str]:
    """A line for each method: what a search may try of it. Arguments as of `candidates`."""
    lines = []
    for space in candidates(entries, [trial for trial in trials if not trial.baseline], fits):
        if space.grid:
            told = f"the {len(space.variants)} settings that the study lists"
        else:
            told = ", ".join(f"{name} {space_in_words(range_)}" for name, range_ in space.space.items())
        lines.append(f"{space.group}: {told or 'as it is, there is nothing to choose'}")
    return lines


def _stated(entry: Any) -> tuple[str, set[str]]:
    """(group, names of the settings that the study states) of one entry of `methods:`."""
    parts = entry if isinstance(entry, list) else [entry]
    names: set[str] = set()
    groups = []
    for part in parts:
        name, settings = parse_call(part) if isinstance(part, str) else next(iter(part.items()))
        cls = method_class(str(name))
        # A preset's name (`rslora`, say) states the settings that make it one.
        keys = {*(settings or {}), *cls.presets.get(normalized(str(name)), {})}
        names |= {f"{cls.name}.{key}" if len(parts) > 1 else key for key in keys}
        groups.append(cls.name)
    return " + ".join(groups), names


def _inside(value: Any, space: Space) -> bool:
    return value in space.options if isinstance(space, Choice) else space.low <= value <= space.high


def _tokens(variant: Variant) -> int:
    return sum(int(getattr(method.config, "tokens", 0)) for method in variant.build())
