"""Ways of damaging a file or a folder: each takes its path and that of the same file of another study.

They return False where nothing is changed by them.
"""

import contextlib
import functools
import os
import re
import shutil
import socket


def changed(change):
    """A damage of a file's content."""

    @functools.wraps(change)
    def apply(path, other):
        old = path.read_bytes()
        new = change(old)
        path.write_bytes(new)
        return new != old

    return apply


def lines_of(content):
    return content.splitlines(keepends=True)


def without_middle(content):
    lines = lines_of(content)
    return b"".join(lines[: len(lines) // 2] + lines[len(lines) // 2 + 1 :])


def middle_twice(content):
    lines = lines_of(content)
    return b"".join(lines[: len(lines) // 2] + lines[len(lines) // 2 - 1 :])


def exchanged(content):
    lines = lines_of(content)
    if len(lines) > 3:
        lines[1], lines[2] = lines[2], lines[1]
    return b"".join(lines)


def digits_flipped(content):
    return re.sub(rb"0\.(\d)", lambda found: b"0." + str(9 - int(found.group(1))).encode(), content)


def last_digit(content):
    """The last digit of the first long number."""
    return re.sub(rb"(\d\.\d{4,})(\d)", lambda f: f.group(1) + str(9 - int(f.group(2))).encode(), content, count=1)


def byte_flipped(at):
    def flip(content):
        place = int(at * len(content))
        return content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :] if content else content

    return flip


def value_for(value):
    """The value of the first key of the last row or object that has a number, by another."""
    return lambda content: re.sub(rb"(: |= )(-?\d[\d.e+-]*)", rb"\g<1>" + value, content, count=1)


def key_lost(content):
    return re.sub(rb'("[a-z_]+": [\w."+-]+, |\n *"?[a-z_]+"?(: | = )[\w."+-]+,?)', b"", content, count=1)


CONTENTS = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2],
    "last line cut": lambda content: content[:-9],
    "last row lost": lambda content: b"".join(lines_of(content)[:-1]),
    "row lost": without_middle,
    "row twice": middle_twice,
    "rows exchanged": exchanged,
    "digits flipped": digits_flipped,
    "last digit": last_digit,
    **{f"byte at {at}": byte_flipped(at) for at in (0.0, 0.3, 0.6, 0.99)},
    "not UTF-8": lambda content: content.replace(b"e", b"\xff\xfe", 1),
    "zeros": lambda content: bytes(len(content)),
    "deep": lambda content: b"[" * 100_000,
    "deep value": value_for(b"[" * 100_000 + b"]" * 100_000),
    "400 digits": value_for(b"9" * 400),
    "NaN": value_for(b"NaN"),
    "infinity": value_for(b"Infinity"),
    "huge exponent": value_for(b"1e999"),
    "text for a number": value_for(b'"many"'),
    "key lost": key_lost,
    "list at top": lambda content: b"[]\n",
    "number at top": lambda content: b"3\n",
    "text at top": lambda content: b'"finished"\n',
    "nothing known": lambda content: b"{}\n",
    "trailing": lambda content: content + b"garbage\n",
}


def gone(path):
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def removed(path, other):
    gone(path)


def fifo(path, other):
    gone(path)
    os.mkfifo(path)


def folder(path, other):
    gone(path)
    path.mkdir()


def plain_file(path, other):
    gone(path)
    path.write_text("a file\n")


def bound_socket(path, other):
    gone(path)
    with contextlib.chdir(path.parent), socket.socket(socket.AF_UNIX) as server:  # names of sockets must be short
        server.bind(path.name)


def link_to(target):
    def link(path, other):
        gone(path)
        path.symlink_to(target or path.parents[len(path.parts) - 1 - path.parts.index("damaged")] / "victim")

    return link


def of_another(path, other):
    if not other.is_file():
        return False
    same = path.read_bytes() == other.read_bytes()
    shutil.copyfile(other, path)
    return not same


def of_another_run(path, other):
    """A file of the same name in a folder beside this one's."""
    beside = [p for p in sorted(path.parent.parent.glob(f"*/{path.name}")) if p != path]
    return bool(beside) and of_another(path, beside[-1])


def huge(path, other):
    os.truncate(path, 10 * 2**30)


def unreadable(path, other):
    path.chmod(0)
    return not os.access(path, os.R_OK)  # the administrator reads it all the same


ANYTHING = {
    "removed": removed,
    "named pipe": fifo,
    "a folder": folder,
    "a socket": bound_socket,
    "link to a victim": link_to(None),
    "link to zeros": link_to("/dev/zero"),
    "link to nothing": link_to("/nonexistent/file"),
    "unreadable": unreadable,
}
FILES = {name: changed(change) for name, change in CONTENTS.items()}
FILES |= {"of another study": of_another, "of another run": of_another_run, "huge": huge} | ANYTHING
FOLDERS = ANYTHING | {"a file": plain_file}
