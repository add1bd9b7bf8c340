"""What a patch does to a model's answers and its speed, on real data: ``hf-gelu-patch evaluate``, from Python.

    from accelerate import Accelerator
    from hf_gelu_patch.evaluation.loading.subjects import subject
    from hf_gelu_patch.evaluation.run import evaluate_subject
    from hf_gelu_patch.evaluation.options.settings import Settings

    result = evaluate_subject(subject("gpt2"), Settings(limit=64), Accelerator(cpu=True))
    for one in result.variants:
        print(one.variant.name, one.quality.flips, one.speed.verdict)

data (rows out of files, folders, the hub) → metrics → tasks (what a model is asked) → loading (what the user names) →
quality, drift, speed → padding, failures (rows that a model fails on) → records (what was answered, line by line) → run
(one model before and after) → report (results as plain data, in words, and as files). ``options`` is how what a user
may ask for is declared, in ``settings``, ``subject`` and ``variants``. Nothing is imported here: ``loading`` can refuse
a name before torch's companions are loaded.
"""
