"""One file per experiment: the paper and the command are in its docstring, measured results in docs/results.md."""
