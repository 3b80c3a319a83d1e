"""Make, on a real directory tree, the files that file systems get wrong.

    odd-files.py before|changes|odd ROOT

before: a known tree under /opt/changes for the next step to change, packed with the base layer.
changes: names removed, and every type replaced by every other.
odd: links, capabilities, devices, long and non-UTF-8 names, holes, times, owners, xattrs, ACLs.
"""
import os
import shutil
import stat
import subprocess
import sys

TYPES = ("file", "dir", "symlink", "fifo", "device")


def write(path, data=b"x\n"):
    with open(path, "wb") as file:
        file.write(data)


def make(path, kind, text):
    """One node of the given kind; a directory gets a child so that a replaced one has something to hide."""
    if kind == "file":
        write(path, text + b"\n")
    elif kind == "dir":
        os.mkdir(path)
        write(os.path.join(path, b"inside-" + text))
    elif kind == "symlink":
        os.symlink(b"to-" + text, path)
    elif kind == "fifo":
        os.mkfifo(path, 0o640)
    elif kind == "device":
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))


def remove(path):
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    else:
        os.unlink(path)


def before(root):
    top = os.path.join(root, b"opt/changes")
    os.makedirs(top)
    for old in TYPES:
        for new in TYPES:
            make(os.path.join(top, f"{old}-becomes-{new}".encode()), old, b"old")
        make(os.path.join(top, f"{old}-removed".encode()), old, b"old")
    for name in (b"opaque-by-umoci", b"opaque-by-tar", b"opaque-late", b"recreated", b"whited-and-refilled"):
        os.makedirs(os.path.join(top, name, b"deep/deeper"))
        for inside in (b"old", b"kept", b"deep/old", b"deep/deeper/old"):
            write(os.path.join(top, name, inside), b"old " + inside)
    write(os.path.join(top, b"link-1"), b"one of three names\n")
    for name in (b"link-2", b"link-3"):
        os.link(os.path.join(top, b"link-1"), os.path.join(top, name))
    write(os.path.join(top, b"lower-target"), b"a later layer links to this\n")
    write(os.path.join(top, b"chmod-only"), b"only attributes change\n")
    os.makedirs(os.path.join(top, b"real-dir"))
    write(os.path.join(top, b"real-dir/file"))
    os.symlink(b"real-dir", os.path.join(top, b"dirlink"))


def changes(root):
    top = os.path.join(root, b"opt/changes")
    for old in TYPES:
        for new in TYPES:
            path = os.path.join(top, f"{old}-becomes-{new}".encode())
            remove(path)
            make(path, new, b"new")
        remove(os.path.join(top, f"{old}-removed".encode()))
    shutil.rmtree(os.path.join(top, b"recreated"))
    os.mkdir(os.path.join(top, b"recreated"), 0o711)
    write(os.path.join(top, b"recreated/kept"), b"new\n")
    os.unlink(os.path.join(top, b"link-2"))
    os.chmod(os.path.join(top, b"chmod-only"), 0o4711)
    os.chmod(os.path.join(top, b"real-dir"), 0o2770)


def names(top):
    here = os.path.join(top, b"names")
    os.mkdir(here)
    odd = [b"n" * 255, b"\xff\xfe not utf-8 \x80", "ünï-cödé-名前".encode(), "é".encode() * 127, b" lead and trail ",
           b"new\nline", b"tab\there", b"back\\slash", b"quote\"'", b"\x01\x1b[31m", b"*?[a]", b"-rf", b"#%&",
           b".wh", b"wh.x", b"..dots", b"...", b"a=b", b"\xc3"]
    for index, name in enumerate(odd):
        write(os.path.join(here, name), b"name %d\n" % index)
    deep = os.path.join(here, b"deep")
    os.mkdir(deep)
    fd = os.open(deep, os.O_RDONLY)
    # 16 levels of 254 bytes: paths over the 4,000 bytes that a fixed buffer of PATH_MAX less a prefix would cut.
    for level in range(15):
        name = b"%02d" % level + b"d" * 252
        os.mkdir(name, 0o755, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open(b"leaf", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.symlink(b"t" * 4095, b"long-target", dir_fd=fd)
    os.close(fd)


def links(top):
    here = os.path.join(top, b"links")
    os.makedirs(os.path.join(here, b"sub"))
    write(os.path.join(here, b"z-first"), b"linked\n")
    for name in (b"a", b"sub/b", b"sub/" + b"l" * 255):
        os.link(os.path.join(here, b"z-first"), os.path.join(here, name))
    os.link(os.path.join(top, b"../changes/lower-target"), os.path.join(here, b"to-a-lower-layer"))
    os.mkfifo(os.path.join(here, b"fifo"))
    os.link(os.path.join(here, b"fifo"), os.path.join(here, b"fifo-again"))
    os.symlink(b"a", os.path.join(here, b"symlink"))
    os.symlink(b"loop", os.path.join(here, b"loop"))
    os.symlink(b"../../../../../../../../etc/passwd", os.path.join(here, b"out-of-the-root"))
    os.symlink(b"\xff\xfe", os.path.join(here, b"not-utf-8"))


def nodes(top):
    here = os.path.join(top, b"nodes")
    os.mkdir(here)
    nodes_ = (("null", stat.S_IFCHR, 1, 3), ("big-numbers", stat.S_IFCHR, 4095, 1048575), ("loop", stat.S_IFBLK, 7, 0),
              ("minor-0", stat.S_IFBLK, 8, 0))
    for name, kind, major, minor in nodes_:
        os.mknod(os.path.join(here, name.encode()), kind | 0o660, os.makedev(major, minor))
    os.mkfifo(os.path.join(here, b"fifo"), 0o604)
    for mode in (0o0000, 0o0001, 0o0400, 0o1777, 0o2755, 0o4755, 0o6711, 0o7777, 0o7000):
        path = os.path.join(here, b"mode-%04o" % mode)
        write(path)
        os.chmod(path, mode)
        os.mkdir(path + b".d")
        os.chmod(path + b".d", mode)


def owners(top):
    here = os.path.join(top, b"owners")
    os.mkdir(here)
    for uid, gid in ((0, 0), (1, 2), (65534, 65534), (2097151, 2097152), (2147483647, 2147483648),
                     (4294967294, 4294967294)):
        path = os.path.join(here, b"%d-%d" % (uid, gid))
        write(path)
        os.chown(path, uid, gid)
        os.symlink(b"x", path + b".symlink")
        os.lchown(path + b".symlink", gid, uid)


def times(top):
    here = os.path.join(top, b"times")
    os.mkdir(here)
    # Seconds that ext4 (256-byte inodes) holds: 1901 to 2446.
    for seconds in (0, 1, -1, -1000000000, -2147483648, 2147483647, 2147483648, 4102444800, 4294967296, 8589934592,
                    15032385535, 1234567890):
        path = os.path.join(here, b"at%d" % seconds)
        write(path)
        os.utime(path, ns=(seconds * 10**9, seconds * 10**9))


def holes(top):
    here = os.path.join(top, b"sparse")
    os.mkdir(here)
    for name, size, islands in ((b"all-hole", 1 << 20, ()), (b"one-island", 8 << 20, (4 << 20,)),
                                (b"data-at-end", (1 << 20) + 3, (1 << 20,)), (b"many", 4 << 20, range(0, 4 << 20, 65536))):
        with open(os.path.join(here, name), "wb") as file:
            file.truncate(size)
            for at in islands:
                file.seek(at)
                file.write(b"abc")


def xattrs(top):
    here = os.path.join(top, b"xattrs")
    os.mkdir(here)
    values = ((b"user.empty", b""), (b"user.text", b"text"), (b"user.newline", b"a\nb\n"), (b"user.nul", b"a\0b\0"),
              (b"user.bytes", bytes(range(256))), (b"user.big", b"v" * 2000),
              (b"trusted.seen-by-root", b"t"), (b"security.plain", b"s\n"))
    for name, value in values:
        path = os.path.join(here, name)
        write(path)
        os.setxattr(path, name, value)
    every = os.path.join(here, b"several")
    os.mkdir(every)
    for name, value in values[:5]:
        os.setxattr(every, name, value)
    os.symlink(b"x", os.path.join(here, b"on-a-symlink"))
    os.setxattr(os.path.join(here, b"on-a-symlink"), b"trusted.link", b"l", follow_symlinks=False)
    ping = os.path.join(here, b"capable")
    shutil.copy(b"/bin/true", ping)
    os.chmod(ping, 0o755)
    subprocess.run(["setcap", "cap_net_raw,cap_net_admin+ep", ping], check=True)
    for name, rules in ((b"acl", "u:1:rw,g:2:r,m::rw"), (b"acl.d", "u:1:rwx,d:u:3:rx,d:g:4:rwx")):
        path = os.path.join(here, name)
        os.mkdir(path) if name.endswith(b".d") else write(path)
        subprocess.run(["setfacl", "-m", rules, path], check=True)


def odd(root):
    top = os.path.join(root, b"opt/odd")
    os.mkdir(top)
    for step in (names, links, nodes, owners, times, holes, xattrs):
        step(top)
    sizes = os.path.join(top, b"sizes")
    os.mkdir(sizes)
    for size in (0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 131072, 131073, 1 << 20, (1 << 20) + 1):
        write(os.path.join(sizes, b"%d" % size), os.urandom(256) * (size // 256) + b"e" * (size % 256))
    with open(os.path.join(sizes, b"64M"), "wb") as file:
        for index in range(64):
            file.write((b"%08d" % index) * (1 << 17))


if __name__ == "__main__":
    os.umask(0o022)
    {"before": before, "changes": changes, "odd": odd}[sys.argv[1]](os.fsencode(sys.argv[2]))
