"""Selections: which sites `where`, `layers` and `stacks` name."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dollartune.errors import UserError
from dollartune.methods.selection import Selection, parse_layers
from dollartune.testing.tiny import meta_backbone


def roles(where: str, family: str = "llama", **more: str) -> set[str]:
    anatomy = meta_backbone(family).anatomy
    return {site.role for site in Selection(where, **more).sites(anatomy, ("linear",))}


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("self_attn.q self_attn.v", {"self_attn.q", "self_attn.v"}),
        ("self_attn.q, self_attn.v", {"self_attn.q", "self_attn.v"}),
        ("attention", {"self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o"}),
        ("attention -q -o", {"self_attn.k", "self_attn.v"}),
        ("self_attn.* -self_attn.q", {"self_attn.k", "self_attn.v", "self_attn.o"}),
        ("dense", {"mlp.gate", "mlp.up", "mlp.down"}),
        ("query", {"self_attn.q"}),
        ("*.down", {"mlp.down"}),
        ("cross_attn self_attn.q", {"self_attn.q"}),
    ],
)
def test_where(where: str, found: set[str]) -> None:
    assert roles(where) == found


def test_order_counts_a_minus_takes_away_what_stands_before_it() -> None:
    assert roles("attention -q q") == roles("attention")
    assert roles("-q attention") == roles("attention")


def test_fused_parts_are_roles_of_their_own() -> None:
    for family in ("gpt2", "bloom"):
        assert roles("self_attn.q", family) == {"self_attn.q"}


def test_stacks() -> None:
    anatomy = meta_backbone("t5").anatomy
    encoder = Selection("q", stacks="encoder").sites(anatomy, ("linear",))
    both = Selection("q").sites(anatomy, ("linear",))
    assert {site.stack for site in encoder} == {"encoder"}
    assert len(encoder) == 2
    assert len(both) == 2 + 2 * 2  # the decoder attends twice
    with pytest.raises(UserError, match=r"'encodr' is not a stack.*Did you mean 'encoder'"):
        Selection("q", stacks="encodr").sites(anatomy, ("linear",))


@pytest.mark.parametrize(
    ("where", "sentence"),
    [
        ("self_atn.q", "unknown role 'self_atn.q'. Did you mean 'self_attn.q'"),
        ("atention", "Did you mean 'attention'"),
        ("cross_attn", "selects nothing"),
        ("", "selects nothing"),
        ("layer", "selects nothing that this method can edit"),
    ],
)
def test_bad_where(where: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        roles(where)
    assert sentence in caught.value.message


@pytest.mark.parametrize(
    ("text", "count", "found"),
    [
        ("all", 3, [0, 1, 2]), ("none", 3, []), ("first 50%", 6, [0, 1, 2]), ("last 50%", 6, [3, 4, 5]),
        ("early 1", 6, [0]), ("late 2", 6, [4, 5]), ("first 9", 3, [0, 1, 2]), ("first 1%", 6, [0]), ("first 0", 6, []),
        ("every 2", 5, [0, 2, 4]), ("0-2,4", 6, [0, 1, 2, 4]), ("-1", 6, [5]), (" First  50% ", 4, [0, 1]),
    ],
)  # fmt: skip
def test_layers(text: str, count: int, found: list[int]) -> None:
    assert sorted(parse_layers(text, count)) == found


@pytest.mark.parametrize("text", ["0-6", "9", "4-2", "-9"])
def test_layers_outside_the_stack(text: str) -> None:
    with pytest.raises(UserError, match=r"outside this stack's layers 0-5"):
        parse_layers(text, 6)


@pytest.mark.parametrize("text", ["", "firs 50%", "half", "1;2", "every", "every 0"])
def test_layers_that_are_not_understood(text: str) -> None:
    with pytest.raises(UserError, match="is not understood"):
        parse_layers(text, 6)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 100), st.integers(0, 9))
def test_random_layers_are_a_share_that_a_seed_decides(count: int, percent: int, seed: int) -> None:
    text = f"random {percent}% seed {seed}"
    found = parse_layers(text, count, "decoder")
    assert found == parse_layers(text, count, "decoder")
    assert len(found) == min(count, max(1, round(count * percent / 100)))
    assert found <= set(range(count))


def test_random_layers_differ_between_seeds_and_stacks() -> None:
    drawn = {parse_layers(f"random 50% seed {seed}", 20, "decoder") for seed in range(5)}
    assert len(drawn) == 5
    assert parse_layers("random 50%", 20, "encoder") != parse_layers("random 50%", 20, "decoder")
