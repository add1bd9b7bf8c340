"""What a patch does to a model's answers and its speed, on real data: ``hf-gelu-patch evaluate``, from Python.

    from accelerate import Accelerator
    from hf_gelu_patch.evaluation.loading import subject
    from hf_gelu_patch.evaluation.run import Settings, evaluate_subject

    result = evaluate_subject(subject("gpt2"), Settings(limit=64), Accelerator(cpu=True))
    for one in result.variants:
        print(one.variant.name, one.quality.flips, one.speed.verdict)

data, loading (what the user names) → limits (what the model takes) → tasks (what it is asked) → failures (rows that it
fails on) → quality, drift, speed → records (what was answered, line by line) → run → results (plain data) → document
(those in words) → plots, page → report. Nothing is imported here: ``loading`` can refuse a name before torch's
companions are loaded.
"""
