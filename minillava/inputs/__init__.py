"""Pictures and text on their way to a model: pixels and token ids."""
