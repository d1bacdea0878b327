"""Adapters as directories: our own format, peft's format, merged models."""
