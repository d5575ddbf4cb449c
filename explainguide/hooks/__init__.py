"""How a model's own forward pass is read: its layers, logits and places, and second derivatives."""

__all__: list[str] = []
