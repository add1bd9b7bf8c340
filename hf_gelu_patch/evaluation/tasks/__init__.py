"""What a model is asked.

``registry`` lists the tasks in short, without importing torch; ``base`` is what a task is; each other file is a task or
a family of them. ``heads`` says what a classifier answers, ``labels`` what the values of a column mean of a model's
labels, ``limits`` what a model has room for.
"""
