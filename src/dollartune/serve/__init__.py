"""A server of many adapters on one backbone: continuous batching over rows of different adapters, with OpenAI's addresses.

HTTP and its formats (`app`, `routes`, `schema`, `fields`) know no tensor; only the thread of `engine` touches the model.
"""
