"""Known mistakes in lessons/exercises/e11_trainable.py."""

from lessons.mistakes.base import mistake


def trainable_variant(learns, freeze=True, returns=False):
    def set_trainable(model, stage):
        for name, parameter in model.named_parameters():
            if learns(name, stage):
                parameter.requires_grad = True
            elif freeze:
                parameter.requires_grad = False
        return model if returns else None

    return set_trainable


def both(name, stage):
    return name.startswith(("projector.", "language_model.")[:stage])


for sentence, options in {
    "everything learns in yours: the vision tower is frozen in both stages": {"learns": lambda name, stage: True},
    "the vision tower learns in stage 2; LLaVA keeps it frozen": {
        "learns": lambda name, stage: stage == 2 or name.startswith("projector.")
    },
    "the language model learns in stage 1; there the projector is alone": {
        "learns": lambda name, stage: name.startswith(("projector.", "language_model."))
    },
    "only the projector learns in stage 2, too; the language model joins it there": {
        "learns": lambda name, stage: name.startswith("projector.")
    },
    "the projector is frozen in stage 2; it goes on learning beside the language model": {
        "learns": lambda name, stage: name.startswith("projector." if stage == 1 else "language_model.")
    },
    "you freeze nothing: a parameter that learns by default goes on learning, so set False as well": {
        "learns": both,
        "freeze": False,
    },
    "the stages have changed places": {"learns": lambda name, stage: both(name, 3 - stage)},
    "it returns the model; it changes the model that it was given, and returns nothing": {
        "learns": both,
        "returns": True,
    },
}.items():
    mistake("trainable", "set_trainable", sentence)(trainable_variant(**options))


@mistake(
    "trainable",
    "set_trainable",
    "it only freezes: set True for what learns, or a parameter that was frozen before stays frozen",
)
def only_freezes(model, stage):
    for name, parameter in model.named_parameters():
        if not both(name, stage):
            parameter.requires_grad = False
