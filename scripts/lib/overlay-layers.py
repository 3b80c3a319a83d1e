"""Extract each layer of an OCI layout as an overlay lower directory.

    overlay-layers.py LAYOUT OUT

OUT/0 is the lowest. GNU tar extracts; then whiteout files become char devices 0:0 and opaque markers become
trusted.overlay.opaque, which is what kernel overlayfs and fuse-overlayfs read.
"""
import gzip
import json
import os
import re
import shutil
import stat
import subprocess
import sys

# Listing a descriptor gives str; names that are not UTF-8 survive in it as surrogates.
PREFIX, OPAQUE = ".wh.", ".wh..wh..opq"


def blob(layout, digest):
    return os.path.join(layout, "blobs", *digest.split(":"))


def layers(layout):
    with open(os.path.join(layout, "index.json"), encoding="utf-8") as file:
        manifest = json.load(file)["manifests"][0]
    with open(blob(layout, manifest["digest"]), encoding="utf-8") as file:
        return [blob(layout, layer["digest"]) for layer in json.load(file)["layers"]]


def inflate(blob_path, tar):
    """umoci's insert ends a layer with its last file's last byte: no padding, no end marker. GNU tar wants both."""
    with gzip.open(blob_path) as source, open(tar, "wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
        out.write(bytes(-out.tell() % 512 + 1024))


def entries(tar):
    """Type letter, name and link target as GNU tar lists them (python's tarfile does not get through every layer).
    Odd names come escaped, which is good enough to compare them."""
    listing = subprocess.run(["tar", "--list", "--verbose", "--full-time", "--numeric-owner", "--quoting-style=escape",
                              "--absolute-names", "--file", tar], check=True, capture_output=True, text=True).stdout
    for line in listing.splitlines():
        kind, name = re.match(r"(.)\S+ \S+ +\S+ \S+ \S+ +(.*)", line).groups()
        arrow = {"h": " link to ", "l": " -> "}.get(kind)
        name, _, target = name.partition(arrow) if arrow else (name, "", "")
        yield kind, name, target


def look_through(tar):
    """The hard-link targets that are not in the layer itself; the whiteouts that stand below something that is no
    directory here (umoci writes those where a directory with files became a file, and tar cannot make them); and the
    parents that the layer does not list."""
    kinds, links, whiteouts = {}, [], []
    for kind, name, target in entries(tar):
        path = os.path.normpath(name.lstrip("/"))
        kinds[path] = kind
        if kind == "h":
            links.append(os.path.normpath(target.lstrip("/")))
        elif os.path.basename(path).startswith(PREFIX):
            whiteouts.append((os.path.dirname(path), name))
    below_no_dir = [name for parent, name in whiteouts if kinds.get(parent, "d") != "d"]
    unlisted = {""}
    for path in kinds:
        while path := os.path.dirname(path):
            unlisted.add(path)
    return sorted({target for target in links if target not in kinds}), below_no_dir, sorted(unlisted - set(kinds))


def bring_link_targets(targets, out, number):
    """Copy up the targets of hard links into lower layers, as overlayfs itself would: tar needs them to link to."""
    for target in targets:
        below = [os.path.join(out, str(n), target) for n in range(number)]
        source = [path for path in below if os.path.lexists(path)][-1]
        os.makedirs(os.path.dirname(os.path.join(out, str(number), target)), exist_ok=True)
        subprocess.run(["cp", "-a", source, os.path.join(out, str(number), target)], check=True)


def adopt_parents(unlisted, out, number):
    """A parent that a layer does not list is the lower layer's directory, so it looks like that one; tar made it up."""
    for path in unlisted:
        below = [os.path.join(out, str(n), path) for n in range(number)]
        known = [os.lstat(lower) for lower in below if os.path.isdir(lower) and not os.path.islink(lower)]
        here = os.path.join(out, str(number), path)
        if known and os.path.isdir(here):
            os.chown(here, known[-1].st_uid, known[-1].st_gid)
            os.chmod(here, stat.S_IMODE(known[-1].st_mode))
            os.utime(here, ns=(known[-1].st_atime_ns, known[-1].st_mtime_ns))


def convert(fd, opaque):
    """Turn the markers below an open directory into overlayfs's form; directories are walked by descriptor, since a
    path here can be longer than a path may be."""
    names = os.listdir(fd)
    if OPAQUE in names:
        os.unlink(OPAQUE, dir_fd=fd)
        opaque(fd)
    for name in names:
        if name.startswith(PREFIX) and name != OPAQUE:
            os.unlink(name, dir_fd=fd)
            hidden = name[len(PREFIX):]
            if hidden not in names:
                os.mknod(hidden, 0o020000, 0, dir_fd=fd)
            elif stat.S_ISDIR(os.stat(hidden, dir_fd=fd, follow_symlinks=False).st_mode):
                below = os.open(hidden, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
                opaque(below)
                os.close(below)
    for item in list(os.scandir(fd)):
        if item.is_dir(follow_symlinks=False):
            below = os.open(item.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            before = os.stat(below)
            convert(below, opaque)
            os.utime(below, ns=(before.st_atime_ns, before.st_mtime_ns))
            os.close(below)


def mark_opaque(fd):
    os.setxattr(fd, b"trusted.overlay.opaque", b"y")


def main(layout, out):
    os.makedirs(out)
    tar = os.path.join(out, "layer.tar")
    for number, blob_path in enumerate(layers(layout)):
        here = os.path.join(out, str(number))
        os.mkdir(here)
        inflate(blob_path, tar)
        targets, senseless, unlisted = look_through(tar)
        bring_link_targets(targets, out, number)
        subprocess.run(["tar", "--extract", "--file", tar, "--directory", here, "--same-owner",
                        "--preserve-permissions", "--warning=no-timestamp", "--numeric-owner", "--xattrs", "--xattrs-include=*",
                        "--anchored", "--no-wildcards", *("--exclude=" + name for name in senseless)], check=True)
        fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
        convert(fd, mark_opaque)
        os.close(fd)
        adopt_parents(unlisted, out, number)
    os.unlink(tar)


if __name__ == "__main__":
    main(*sys.argv[1:3])
