"""What learns in which stage.

    stage 1, feature alignment:           the projector alone
    stage 2, visual instruction tuning:   the projector and the language model

The vision tower is frozen in both. A frozen parameter has requires_grad False. Set it for every parameter of the model,
True or False, whatever it was before. The parameters' names begin with "vision_tower.", "projector." or
"language_model.".

    >>> set_trainable(model, 1)
    >>> sorted({name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad})
    ['projector']

About 3 lines; returns nothing. Check it: python -m lessons.check trainable
"""

from torch import nn

REPLACES = "minillava.training.set_trainable"


def set_trainable(model: nn.Module, stage: int) -> None:
    raise NotImplementedError("set_trainable has to freeze all that does not learn in this stage")
