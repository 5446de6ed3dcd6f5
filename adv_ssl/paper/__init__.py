"""The paper in a box: its grid of runs, its tables and figures, its claims, beside our numbers.

- grid: what there is to run, every cell with its command; runner: runs what is missing.
- store: every score under a folder, archive: one file of it; exhibits: the paper's numbers, tables:
  ours, as one type.
- claims, transfer_claims: what the paper says, held to such numbers, as findings; verdicts:
  whether it holds, over seeds.
- layouts, figures, filters, prices, kept, scaling, page: how all of it is shown.
"""
