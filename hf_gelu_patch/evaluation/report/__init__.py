"""What is shown of results: on the screen, and as files.

results (plain data, the JSON) → document (those in words: tables, texts, code, pictures) → markdown, page, card, plots,
terminal, each of which shows a document in its own way → formats (the list of what is written) → files (writes it).

A report format is one record in ``formats``. Nothing is imported here.
"""
