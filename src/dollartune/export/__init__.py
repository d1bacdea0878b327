"""Adapters as directories: our own format, peft's format, merged models; reading all three, and the card beside them.

What leaves here is compared with the adapter that it came from, by logits, before anybody is told that it was written.
"""
