"""The paper in a box: its grid of runs, its tables and figures, its claims, beside our numbers.

grid    what there is to run: every run with its command     runner  runs what is missing
store   what was run: every score under a folder             tables  the paper's numbers and ours
figures drawings of tables     claims  what the paper says, held to tables     page  the report
"""
