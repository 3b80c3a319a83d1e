"""Lists a tree, a line for each path, so that two trees are the same when their lines are.

    list-tree.py DIRECTORY

Left out is what each file system has of its own: inode numbers, the link counts and sizes of directories, and names of
a file that are hidden. A time after the test images were made is said to be new, whatever it is.
"""

import hashlib
import os
import stat
import sys

# The test images' own times are before.
NEW = 1_700_000_000
KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "dir",
    stat.S_IFLNK: "symlink",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "char",
    stat.S_IFBLK: "block",
}


def text(raw):
    return ascii(raw)[2:-1]


def paths(top):
    """Every path below `top`, with what its directory said of its inode number and kind."""
    yield b"", None
    todo = [b""]
    while todo:
        at = todo.pop()
        for entry in os.scandir(os.path.join(top, at)):
            path = os.path.join(at, entry.name)
            yield path, entry
            if entry.is_dir(follow_symlinks=False):
                todo.append(path)


def content(path, kind, info):
    if kind == "file":
        with open(path, "rb") as file:
            return f"size={info.st_size} sha256={hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
    if kind == "symlink":
        return f"target={text(os.readlink(path))}"
    if kind in ("char", "block"):
        return f"device={os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
    return ""


def attributes(path):
    names = sorted(os.listxattr(path, follow_symlinks=False), key=os.fsencode)
    return [f"{name}={text(os.getxattr(path, name, follow_symlinks=False))}" for name in names]


def listed_kind(entry):
    kinds = {
        "dir": entry.is_dir(follow_symlinks=False),
        "file": entry.is_file(follow_symlinks=False),
        "symlink": entry.is_symlink(),
    }
    return "".join(kind for kind, holds in kinds.items() if holds)


def line(top, path, entry, links):
    full = os.path.join(top, path)
    info = os.lstat(full)
    kind = KINDS[stat.S_IFMT(info.st_mode)]
    words = [f"/{text(path)}", kind, f"{stat.S_IMODE(info.st_mode):o}", f"{info.st_uid}:{info.st_gid}"]
    words.append("new" if info.st_mtime >= NEW else f"{info.st_mtime_ns / 1e9:.3f}")
    words.append(content(full, kind, info))
    words += attributes(full)
    if kind != "dir":
        first = links.setdefault((info.st_dev, info.st_ino), path)
        words.append(f"is=/{text(first)}" if first != path else "")
    if entry is not None and entry.inode() != info.st_ino:
        words.append("FAULT: its directory lists another inode number")
    if entry is not None and listed_kind(entry) not in (kind, ""):
        words.append("FAULT: its directory lists another kind")
    return " ".join(word for word in words if word)


def main():
    top = os.fsencode(sys.argv[1])
    links = {}
    for path, entry in sorted(paths(top), key=lambda found: found[0]):
        print(line(top, path, entry, links))


main()
