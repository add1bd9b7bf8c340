"""What a model is asked.

``registry`` lists the tasks in short, without importing torch; ``base`` is what a task is; each other file is a task or
a family of them. ``heads`` says what a classifier answers, ``labels`` what the values of a column mean of a model's
labels, ``logits`` reads off what a model says, ``limits`` is what a model has room for. A task is added in one place::

    from hf_gelu_patch.evaluation.tasks.registry import TaskInfo, register_task

    register_task(TaskInfo("last-word", "the last word of each text", LastWord, "AutoModelForCausalLM", ("tokens",)))

``LastWord`` is a ``base.Task``, or derived from the one that is most like it. The command line, the list of tasks and
the reports then have it, and the metrics of its kinds of answers measure it.
"""
