"""Write a layer tar that umoci's repack would not write.

    odd-layer.py gnu|pax WORK TAR

gnu: GNU tar's pax format with nanoseconds, sparse maps and xattrs, and an opaque marker after its siblings.
pax: entries written one by one: a hard link into a lower layer, a hard link before the layer's own changes, an opaque
marker at the very end, whiteouts whose target does not exist, directories that are never listed, and old header forms.
"""
import io
import os
import subprocess
import sys
import tarfile


def write(path, data=b"x\n"):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)


def gnu(work, out):
    top = os.path.join(work, "gnu")
    raw = os.path.join(top, "opt/raw")
    os.makedirs(raw)
    for seconds, nanos in ((0, 1), (-1, 500000000), (-2000000000, 123456789), (4102444800, 999999999),
                           (1700000000, 100), (15032385535, 1)):
        path = os.path.join(raw, f"time_{seconds}_{nanos}")
        write(path)
        os.utime(path, ns=(seconds * 10**9 + nanos,) * 2)
    for name, size, islands in (("hole", 1 << 20, ()), ("island", 64 << 20, (32 << 20,)),
                                ("tail", (8 << 20) + 7, (0, 8 << 20)), ("many", 16 << 20, range(0, 16 << 20, 131072))):
        write(os.path.join(raw, "sparse-" + name), b"")
        with open(os.path.join(raw, "sparse-" + name), "r+b") as file:
            file.truncate(size)
            for at in islands:
                file.seek(at)
                file.write(b"island")
    for name, value in (("user.nul", b"a\0b\0"), ("user.newline", b"\na\n"), ("user.bytes", bytes(range(256))),
                        ("trusted.raw", b"t"), ("user.empty", b"")):
        write(os.path.join(raw, name))
        os.setxattr(os.path.join(raw, name), name, value)
    write(os.path.join(raw, "owner"))
    os.chown(os.path.join(raw, "owner"), 4294967294, 4000000000)
    write(os.path.join(raw, "links/a"), b"linked by GNU tar\n")
    os.link(os.path.join(raw, "links/a"), os.path.join(raw, "links/b"))
    write(os.path.join(raw, "l" * 255 + "/" + "m" * 255), b"long\n")
    late = os.path.join(top, "opt/changes/opaque-by-tar")
    write(os.path.join(late, "new"), b"new\n")
    write(os.path.join(late, ".wh..wh..opq"), b"")
    # Sorted, but the marker last: a reader that applies it when it meets it would hide the layer's own files.
    names = ["opt/raw", "opt/changes/opaque-by-tar/new", "opt/changes/opaque-by-tar/.wh..wh..opq"]
    subprocess.run(["tar", "--create", "--file", out, "--directory", top, "--format=pax", "--sparse", "--sort=name",
                    "--xattrs", "--xattrs-include=*", "--numeric-owner", *names], check=True)


def entry(tar, name, kind=tarfile.REGTYPE, data=b"", **fields):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.size = len(data)
    info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.mtime = 1600000000
    for key, value in fields.items():
        setattr(info, key, value)
    tar.addfile(info, io.BytesIO(data))


def pax(_work, out):
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT) as tar:
        entry(tar, "opt/pax", tarfile.DIRTYPE)
        entry(tar, "opt/pax/link-to-lower", tarfile.LNKTYPE, linkname="opt/changes/lower-target")
        entry(tar, "./opt/pax/dot-slash", data=b"dot\n")
        entry(tar, "/opt/pax/leading-slash", data=b"slash\n")
        entry(tar, "opt/pax/never/listed/parents", data=b"parents\n")
        entry(tar, "opt/pax/names-are-ignored", data=b"n\n", uid=7, gid=8, uname="root", gname="no-such-group")
        entry(tar, "opt/pax/old-regular", tarfile.AREGTYPE, data=b"type NUL\n")
        entry(tar, "opt/pax/ns", data=b"n\n", pax_headers={"mtime": "-1.250000001"})
        entry(tar, "opt/pax/.wh.nothing-there")
        entry(tar, "opt/changes/whited-and-refilled", tarfile.DIRTYPE, mode=0o700)
        entry(tar, "opt/changes/whited-and-refilled/kept", data=b"new\n")
        entry(tar, "opt/changes/.wh.whited-and-refilled")
        entry(tar, "opt/changes/opaque-late/new", data=b"new\n")
        entry(tar, "opt/changes/opaque-late/deep/new", data=b"new\n")
        entry(tar, "opt/changes/link-3", data=b"no longer a link\n")
        entry(tar, "opt/changes/opaque-late/.wh..wh..opq")


if __name__ == "__main__":
    {"gnu": gnu, "pax": pax}[sys.argv[1]](sys.argv[2], sys.argv[3])
