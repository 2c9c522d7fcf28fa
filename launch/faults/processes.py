"""Real processes that are killed, asked to stop, or out of room."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

from launch.faults.bench import Bench, Skipped, said

# Fails every write behind a number of bytes, as a full quota does, in the files of one folder.
SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
static long left = -1;
static int refuse(int fd, size_t count) {
  char link[64], path[4096];
  if (left < 0) left = atol(getenv("TORTURE_BYTES"));
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  if (strncmp(path, getenv("TORTURE_FOLDER"), strlen(getenv("TORTURE_FOLDER")))) return 0;
  if ((long)count > left) { errno = atoi(getenv("TORTURE_ERRNO")); return 1; }
  left -= count;
  return 0;
}
#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
ssize_t write(int fd, const void *b, size_t n) { return refuse(fd, n) ? -1 : NEXT(write)(fd, b, n); }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { return refuse(fd, n) ? -1 : NEXT(pwrite)(fd, b, n, o); }
ssize_t pwrite64(int fd, const void *b, size_t n, off_t o) { return refuse(fd, n) ? -1 : NEXT(pwrite64)(fd, b, n, o); }
ssize_t writev(int fd, const struct iovec *v, int n) {
  size_t count = 0;
  for (int i = 0; i < n; i++) count += v[i].iov_len;
  return refuse(fd, count) ? -1 : NEXT(writev)(fd, v, n);
}
"""


def wait_for_moment(bench: Bench, random: random.Random, process: subprocess.Popen[str], folder: Path) -> None:
    """Waits for any moment of a process; for a third of the tries it is one at which a checkpoint is being saved."""
    kind, end = random.randrange(3), time.monotonic() + random.uniform(0.1, bench.seconds)
    saving = random.choice(["run/checkpoints/.*.tmp*", "runs/teachers/*/checkpoints/.*.tmp*"])
    student = folder / "run" / "metrics.jsonl"
    if kind == 1:
        end = time.monotonic() + bench.seconds
    while process.poll() is None and time.monotonic() < end:
        if kind == 1 and next(folder.glob(saving), None):
            time.sleep(random.uniform(0, 0.05))
            return
        if kind == 2 and student.exists():
            time.sleep(random.uniform(0, bench.seconds / 4))
            return
        time.sleep(0.002)


def kills(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """A run that is killed so many times ends as the one that was not."""
    with bench.scratch() as folder:
        for _ in range(tries):
            process = bench.start(folder)
            wait_for_moment(bench, random, process, folder)
            process.kill()
            process.wait()
        lost = bench.finish(folder) or bench.differences(folder)
        if lost:
            shutil.copytree(folder, bench.folder / "lost", dirs_exist_ok=True)
        return lost


def signals(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """A run that is asked to stop so many times says where it goes on, goes on there, and ends as the others."""
    lost = []
    with bench.scratch() as folder:
        for _ in range(tries):
            number, code = random.choice([(signal.SIGTERM, 143), (signal.SIGINT, 130)])
            before = len(said(folder))
            process = bench.start(folder)
            while process.poll() is None and len(said(folder)) == before:  # until the command has begun
                time.sleep(0.01)
            wait_for_moment(bench, random, process, folder)
            process.send_signal(number)
            ended, text = process.wait(), said(folder)[before:]
            if ended == 0 and "test accuracy" in text.splitlines()[-1]:
                continue  # it was as good as done
            if ended != code or "the same command" not in text.splitlines()[-1]:
                lost.append(f"signal {number}: exit status {ended}: {text[-300:]}")
            if stopped := re.search(r"stopped at step (\d+) of", text):
                before = len(said(folder))
                process = bench.start(folder)
                while process.poll() is None and "going on with" not in said(folder)[before:]:
                    time.sleep(0.01)
                process.kill()
                process.wait()
                if f"from step {stopped[1]} to" not in said(folder)[before:]:
                    lost.append(f"stopped at {stopped[1]}, went on: {said(folder)[before:][-300:]}")
        return lost + (bench.finish(folder) or bench.differences(folder))


def full_disk(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """A disk of so many bytes: the run ends with one line, and goes on when there is room."""
    if os.geteuid() or not shutil.which("mount"):
        raise Skipped("only root can mount a small disk")
    lost = []
    for level in range(tries):
        with bench.scratch() as folder:
            disk = folder / "disk"
            disk.mkdir(parents=True)
            size = (16 << 10) * 2**level if level < 6 else random.randrange(64 << 10, 512 << 10)
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
            try:
                lost += _ends_in_one_line(bench, disk, "the disk is full")
                subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
                lost += [f"{size} bytes: {x}" for x in bench.finish(disk) or bench.differences(disk)]
            finally:
                subprocess.run(["umount", "-l", disk], check=True)
    return lost


def _ends_in_one_line(bench: Bench, folder: Path, expected: str, **environment: str) -> list[str]:
    log = folder.parent / "log"  # not on the disk that is full
    with open(log, "w") as out:
        code = subprocess.Popen(
            bench.command(folder),
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
        ).wait()
    text = log.read_text()
    if code == 0:
        return []
    last = text.splitlines()[-1] if text else ""
    wrong = code != 1 or "Traceback" in text or expected not in last
    return [f"exit status {code}: {text[-400:]}"] if wrong else []


def failing_writes(bench: Bench, random: random.Random, tries: int) -> list[str]:
    """Writes that fail behind so many bytes, for a quota or a broken disk."""
    if not shutil.which("cc"):
        raise Skipped("there is no C compiler for the library that makes writes fail")
    shim = bench.folder / "shim.so"
    (bench.folder / "shim.c").write_text(SHIM)
    subprocess.run(["cc", "-shared", "-fPIC", "-o", shim, bench.folder / "shim.c", "-ldl"], check=True)
    lost = []
    for number in range(tries):
        with bench.scratch() as folder:
            (folder / "disk").mkdir(parents=True)
            error, text = ((122, "the disk quota is used up"), (5, "the disk fails"))[number % 2]
            limits = {"TORTURE_BYTES": str(random.randrange(1 << 10, 1 << 19)), "TORTURE_ERRNO": str(error)}
            preload = {"LD_PRELOAD": str(shim), "TORTURE_FOLDER": str((folder / "disk").resolve())}
            lost += _ends_in_one_line(bench, folder / "disk", text, **limits, **preload)
            lost += [f"{limits}: {x}" for x in bench.finish(folder / "disk") or bench.differences(folder / "disk")]
    return lost
