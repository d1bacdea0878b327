"""A bias at norms of convolutional backbones, whose outputs have channels before places."""

from __future__ import annotations

import torch
from torch import nn

from dollartune.methods.bitfit import BiasShift
from dollartune.methods.edits import Rows


def test_a_norms_bias_is_added_to_each_channel_also_where_sizes_are_equal() -> None:
    norm = nn.BatchNorm2d(4).eval()
    shift = BiasShift(4, channels_first=True)
    with torch.no_grad():
        shift.bias.copy_(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        x = torch.randn(2, 4, 4, 4)  # as many places as channels: sizes alone would not tell
        shifted = norm(x) + shift.delta(x, Rows())
        weight, bias = shift.merge(norm.weight, norm.bias)
        assert bias is not None
        merged = nn.functional.batch_norm(x, norm.running_mean, norm.running_var, weight, bias, eps=norm.eps)
    torch.testing.assert_close(shifted, merged)
    assert shift.affine() is None  # a server adds shifts to the last size
