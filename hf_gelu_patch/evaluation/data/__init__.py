"""Rows of data out of whatever the user names: a file, a folder, or an id on the hub.

``paths`` tells by a name's form what it means; ``reading`` makes a dataset of it; ``csv_and_json`` reads csv, json and
jsonl row by row; ``tables`` makes columns of rows, and says which rows are bad. Texts are UTF-8 throughout.
"""
