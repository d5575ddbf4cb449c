"""Two losses, each with a file of its own now, under their first name."""

from explainguide.losses.gradmask import gradmask_loss
from explainguide.losses.reff import reff_loss

__all__ = ["gradmask_loss", "reff_loss"]
