"""A server of many adapters on one backbone: continuous batching over rows of different adapters, with OpenAI's addresses."""
