"""Training: what the techniques that train have in common. A library, not a plugin.

A step that trains inherits the options, and calls the loop inside `apply`:

    @dataclass(frozen=True)
    class Recover(TrainingOptions, Technique):
        ...
        def apply(self, model, context):
            from penjing_training.loop import train
            from penjing_training.objective import Distil

            objective = Distil(context.original)
            return model.become("torch", train(model.value, self, model, context, objective=objective))
"""

from penjing_training.options import TeacherOptions, TrainingOptions

__all__ = ["TeacherOptions", "TrainingOptions"]
