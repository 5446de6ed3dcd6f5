"""The paper in a box: its grid of runs, its tables and figures, its claims, beside our numbers.

- grid: what there is to run, every cell with its command; runner: runs what is missing.
- store: every score under a folder; tables: the paper's numbers and ours, as one type.
- claims: what the paper says, held to such numbers; verdicts: whether it holds, over seeds.
- layouts, figures, page: how all of it is shown.
"""
