"""One file per experiment: the paper and the command are in its docstring; docs/results.md has what was measured."""
