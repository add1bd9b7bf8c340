"""What finished runs said of each document, paired and compared: theirs, or those of other evaluation libraries.

``documents`` says what is known of a document, whoever wrote it down. ``lm_eval_files``, ``lighteval_files`` and
``own_records`` read it; ``finished`` tells them apart. ``pairing`` finds the same document in two runs, ``aggregating``
makes scores of values, ``comparing`` says what changed, and ``tables`` shows it.
"""
