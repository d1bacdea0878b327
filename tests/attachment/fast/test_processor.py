"""Which number format a processor multiplies fast, and what a limit on oneDNN's instruction sets does to that."""

import pytest
import torch

from dollartune.attachment.fast.processor import cpu_has_bf16


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, True), ("", True), ("DEFAULT", True), ("AVX512_CORE_BF16", True), ("avx512_core_amx", True),
        ("AVX10_1_512", True), ("AVX512_CORE", False), ("AVX512_CORE_VNNI", False), ("avx2", False), ("SSE41", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_a_limited_processor_has_no_bf16(
    monkeypatch: pytest.MonkeyPatch, variable: str, limit: str | None, expected: bool
) -> None:
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    if limit is not None:
        monkeypatch.setenv(variable, limit)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert cpu_has_bf16() is expected


def test_a_processor_without_it_has_none_whatever_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not cpu_has_bf16()
