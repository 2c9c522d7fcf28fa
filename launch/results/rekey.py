"""Gives the lines of a file of results, which older versions wrote, the keys that runs have today.

usage: python launch/results/rekey.py FILE [flags and changes of `python -m kd_jax.table` that made it]

A key of version 0.1 was the hash of a config; it is now the digest of the run's identity, with the fingerprints of the
images (of their contents) and of the pretrained weights, so the images have to be there. Numbers stay as they were
recorded, names become today's, and every line gets its checksum.
"""

import json
import sys

from absl import flags

from kd_jax import checksums, table


def main() -> None:
    path, *arguments = sys.argv[1:]
    changes = flags.FLAGS([sys.argv[0], *arguments])[1:]
    module = table.read("original")
    with open(path) as file:
        lines = [json.loads(line) for line in file]
    for line in lines:
        if line["row"] in module.rows:  # others are no rows of the table, which looks for keys
            line["key"] = table.job(module, line["row"], line["seed"], changes).key
        line["command"] = line["command"].replace("configs/seed.py", "configs/original.py")
        for named in (line["result"], line["result"]["teacher"] or {"name": ""}):
            named["name"] = named["name"].replace("seed-", "original-")
    with open(path, "w") as file:
        file.writelines(json.dumps(checksums.add(line)) + "\n" for line in lines)


if __name__ == "__main__":
    main()
