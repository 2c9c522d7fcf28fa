"""One file per experiment: the paper, the command, the cost and what to expect are in its docstring."""
