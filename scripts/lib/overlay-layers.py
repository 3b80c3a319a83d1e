"""Extract each layer of an OCI layout as an overlay lower directory.

    overlay-layers.py LAYOUT OUT

OUT/0 is the lowest. GNU tar extracts; then whiteout files become char devices 0:0 and opaque markers become
trusted.overlay.opaque, which is what kernel overlayfs and fuse-overlayfs read.
"""
import json
import os
import stat
import subprocess
import sys
import tarfile

# Listing a descriptor gives str; names that are not UTF-8 survive in it as surrogates.
PREFIX, OPAQUE = ".wh.", ".wh..wh..opq"


def blob(layout, digest):
    return os.path.join(layout, "blobs", *digest.split(":"))


def layers(layout):
    with open(os.path.join(layout, "index.json"), encoding="utf-8") as file:
        manifest = json.load(file)["manifests"][0]
    with open(blob(layout, manifest["digest"]), encoding="utf-8") as file:
        return [blob(layout, layer["digest"]) for layer in json.load(file)["layers"]]


def bring_link_targets(tar, out, number):
    """Copy up the targets of hard links into lower layers, as overlayfs itself would: tar needs them to link to."""
    seen = set()
    with tarfile.open(tar, "r:gz") as archive:
        for member in archive:
            name = os.path.normpath(member.name.lstrip("/"))
            target = os.path.normpath(member.linkname.lstrip("/"))
            if member.islnk() and target not in seen:
                below = [os.path.join(out, str(n), target) for n in range(number)]
                source = [path for path in below if os.path.lexists(path)][-1]
                os.makedirs(os.path.dirname(os.path.join(out, str(number), target)), exist_ok=True)
                subprocess.run(["cp", "-a", source, os.path.join(out, str(number), target)], check=True)
            seen.add(name)


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
    for number, tar in enumerate(layers(layout)):
        here = os.path.join(out, str(number))
        os.makedirs(here)
        bring_link_targets(tar, out, number)
        subprocess.run(["tar", "--extract", "--gzip", "--file", tar, "--directory", here, "--same-owner",
                        "--preserve-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=*"], check=True)
        fd = os.open(here, os.O_RDONLY | os.O_DIRECTORY)
        convert(fd, mark_opaque)
        os.close(fd)


if __name__ == "__main__":
    main(*sys.argv[1:3])
