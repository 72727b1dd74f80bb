"""Reads what decides whether a compiled cache fits this node, without importing any package of the engine.

The files of this directory are one program, in this order: packages, host, gpu, engine. It needs the standard library
only and prints one line of JSON:

    {"facts": {NAME: {"value" | "absent" | "failed": TEXT}},
     "sources": {NAME: {"value": TEXT, "trees": [{"prefix", "root", "suffix"}], "known": [[NAME, DIGEST]]}},
     "watch": {"files": [...], "sites": [...], "trees": [[PATH, SUFFIX]]}}

`sources` are facts whose text has the digest of files in the place of its `{}`. `watch` names what the answers were read
from: while none of it changes, they stay true. The argument, if there is one, is
the directory that Python puts first into the path of the engine.
"""
import sys

# The working directory is no place to import the standard library from.
SEARCH = [entry for entry in sys.path if entry]
sys.path[:] = SEARCH

import ast
import functools
import glob
import hashlib
import importlib.util
import json
import os
import re
import subprocess
from base64 import urlsafe_b64decode

SEARCH[:0] = sys.argv[1:2]
sys.path[:] = SEARCH
ENV = os.environ
# Larger files are not read if the installer's list has their digest and they are not newer than the list.
LARGE = 8 << 20
FILES, TREES = set(), set()


class Absent(Exception):
    """The thing does not exist here."""


def watched(path):
    FILES.add(path)
    return path


def text(path):
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


@functools.lru_cache(None)
def distributions():
    """Name -> (version, metadata directory), by the directories' names. The first on the path counts, as for imports."""
    found = {}
    for site in SEARCH:
        for entry in sorted(os.listdir(site)) if os.path.isdir(site) else ():
            stem, kind = os.path.splitext(entry)
            where = os.path.join(site, entry)
            if kind == ".dist-info" and "-" in stem:
                name, version = stem.rsplit("-", 1)
                found.setdefault(canonical(name), (version, where))
            elif kind == ".egg-info" and os.path.isfile(os.path.join(where, "PKG-INFO")):
                version = re.search(r"^Version: *(.+)$", text(os.path.join(where, "PKG-INFO")), re.M)
                found.setdefault(canonical(stem.split("-")[0]), (version.group(1) if version else "unknown", where))
    return found


def version(*names):
    """Of the first that is installed."""
    for name in names:
        if name in distributions():
            return distributions()[name][0]
    raise Absent("%s is not installed" % names[0])


def package(name):
    """The directory that Python would import from. Not resolved: the keys of caches contain it as it is."""
    spec = importlib.util.find_spec(name)
    if spec is None or not (spec.origin or "").endswith("__init__.py"):
        raise Absent("%s is not installed" % name)
    return os.path.dirname(os.path.abspath(spec.origin))


def constants(path):
    """The assignments of plain values at the top of a Python file."""
    found = {}
    for statement in ast.parse(text(watched(path))).body:
        value = getattr(statement, "value", None)
        for target in getattr(statement, "targets", None) or [getattr(statement, "target", None)]:
            if isinstance(target, ast.Name) and isinstance(value, ast.Constant):
                found[target.id] = value.value
    return found


def constant(path, name):
    value = constants(path).get(name)
    if not isinstance(value, str):
        raise ValueError("%s has no `%s`: reinstall the package" % (path, name))
    return value


def sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def recorded(path, *names):
    """The SHA-256 of a large file of one of these distributions."""
    watched(path)
    for name in names:
        record = os.path.join(distributions().get(name, ("", ""))[1], "RECORD")
        if not os.path.isfile(record) or os.path.getsize(path) < LARGE:
            continue
        relative = os.path.relpath(path, os.path.dirname(os.path.dirname(record)))
        entry = re.search(r"^%s,sha256=([\w-]+)=*,(\d+)\s*$" % re.escape(relative), text(watched(record)), re.M)
        if entry and int(entry.group(2)) == os.path.getsize(path) and os.path.getmtime(path) <= os.path.getmtime(record):
            return urlsafe_b64decode(entry.group(1) + "==").hex()
    return sha256(path)


def tree(root, suffix="", prefix=""):
    """All files below a directory whose names end so, each called by its path below it, after the prefix."""
    TREES.add((root, suffix))
    return {"prefix": prefix, "root": root, "suffix": suffix}


class Sources:
    """A value that has the digest of files in the place of its `{}`: who asked reads them, on all cores. `known` are
    (name, digest) of further files."""

    def __init__(self, value, trees, known=()):
        self.value, self.trees, self.known = value, trees, known
