"""Names of files and classes, which on Linux may be any bytes."""


def printable(name: str) -> str:
    r"""The name with what is not UTF-8 written as `\udcff`, so that it can be printed, drawn and saved."""
    return name.encode(errors="backslashreplace").decode()
