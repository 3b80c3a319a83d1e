//! plyfs: a union file system for container images.
//!
//! An image's layers are never unpacked. Each stays one plain tar beside a small index; the indexes are merged into one
//! tree, and a FUSE driver serves that tree out of the mapped tars. An image never changes, so the kernel may cache
//! everything without a time limit. The README says what the program does; this page is the map of how.
//!
//! # Data flows one way
//!
//! ```text
//!   pull: sources (files, registry) ─► image ─► layer (index) ─► store (tars, indexes, documents, catalog)
//!                                       └────► tree (merge) ──►
//!   mount: store ─► image (open) ─► fs ─► fuse ─► kernel
//!                          upper ────┘
//!   mount --engine=kernel: store ─► image (EROFS) ─► kernel (EROFS, and overlayfs on the upper)
//!   overlay: directories ─► layer, tree (one by one) ─► fs ─► fuse ─► kernel
//!   run: a mount for one container, and a runtime on it ─► container
//!   commit: store, upper ─► fs (changes) ─► image ─► layer ─► store
//! ```
//!
//! Arrows mean "feeds". Imports go the other way and never back; `fs-tests/tidy.rs` has the table of allowed
//! imports and checks every source file against it.
//!
//! # Modules
//!
//! | module | what it is |
//! | --- | --- |
//! | [`sys`] | every system call that std lacks, and all unsafe code, behind safe typed wrappers |
//! | [`digest`] | content digests, parsed once and checked while streaming; the only type that becomes a blob's path |
//! | [`name`] | one checked path component, and a path inside a layer |
//! | [`meta`] | file kinds, modes, owners, times, extended attributes |
//! | [`whiteout`] | whiteouts and opaque marks: how layers and upper directories record deletions |
//! | [`dockerfile`] | Dockerfiles: the parser, variables, and the instructions that change an image's config |
//! | [`mod@reference`] | names of images: `name`, `name:tag`, `name@digest` |
//! | [`registry`] | the distribution protocol: credentials, tokens, mirrors, manifests, blob streams, uploads, search |
//! | [`template`] | Go templates over plain data, as `--format` takes them |
//! | [`backing`] | system calls on lower and upper directories behind a trait, so that tests can make each fail; owner and mode in an attribute |
//! | [`layer`] | one immutable layer: reads its tar once, makes its index, reads it where it is mapped; or a plain directory; writes tars |
//! | [`tree`] | the one merge rule: finished indexes in, one merged index out; for plain directories a directory at a time; no I/O |
//! | [`erofs`] | the merged index as an EROFS image of metadata, whose file data lies in the layers' tars; a pure writer |
//! | [`store`] | what is on disk and how it changes: publishing, locks, sessions, mounts, collection; documents the format |
//! | [`image`] | images: sources, pull, import, commit, signatures, push, save, open, remove, check |
//! | [`upper`] | the writable directory: its form, its work directory, single objects made whole and put in place by one call; views of it |
//! | [`fs`] | inodes and operations, without a kernel: tests call it directly; lower layers (an image, or plain directories) as they are, or their union with an upper; what differs between them |
//! | [`handover`] | shared memory in which a FUSE server leaves to the next one what is not on disk: requests under way, descriptors of removed inodes |
//! | [`fuse`] | the supervisor, which keeps the connection and restarts the server; the FUSE server: converts requests, calls `fs`, replies; exactly-once execution; the governor (cheap wake-ups, worker placement); set-ID bits; the only module that names fuser |
//! | [`kernel`] | the kernel engine: mounts an image by EROFS and overlayfs, without a daemon |
//! | [`container`] | containers: the sandbox process (PID 1 of a PID namespace) and its root file system, users and paths in it, runtime spec, monitor, exec, copy; chroot |
//! | [`browse`] | looking into images without a mount: paths, listings, what each layer changes and wastes, the comparison of two images |
//! | [`build`] | building images from Dockerfiles: the plan of stages, steps, copied files as layers, the cache's keys |
//! | [`cli`] | the command line: arguments, Docker's messages and exit codes, the mount helper, the daemon that serves a mount |
//!
//! # Invariants
//!
//! Each is held by a test that reads the source (`fs-tests/tidy.rs`), not by memory:
//!
//! 1. `unsafe` stands only under `sys/`, and every block says why it is sound.
//! 2. `fuser` is named only under `fuse/`, so that the transport can be replaced one day.
//! 3. How a deletion is written is known to `whiteout.rs` alone.
//! 4. A layer's index is complete before any merge: an opaque marker hides lower layers only, wherever it stands in the
//!    tar.
//! 5. Errno is chosen in `fs/error.rs` alone, by an exhaustive match; operations return a typed error with its cause.
//! 6. Environment, printing and exit belong to `cli` and `main`.
//! 7. Nothing unwraps or expects outside tests.
//! 8. A file stays under 800 lines without its tests, a function under 70; exceptions are listed with their reason.
//! 9. Imports form no cycle, between modules or between files.
//!
//! # Locks
//!
//! All locks on disk are flocks, so a dead process holds none. In this order:
//!
//! 1. the store's `lock`: shared to begin something (a session, an intent, a mount), exclusive to change the catalog or
//!    to remove anything;
//! 2. a session's folder, or a mount's or a container's `lock` file, held as long as it lives. Others only ever try these, without waiting.
//!
//! A mount of the kernel engine has no process and so no lock: the kernel says whether it exists, by its unique ID, and
//! whether an upper directory is in use ([`sys::is_mounted`], [`sys::is_overlay_upper`]).
//!
//! Inside a process: what a session made and which layers wait for a worker are each behind a mutex that is held for a
//! few instructions and under which no other lock is taken. A session's folder is removed under its own mutex, by the
//! session or by the signal that ends it. An image in `fs` locks nothing; plain directories' locks are in
//! `fs/lowerdirs/mod.rs`, the union's and their order in `fs/union/mod.rs`. No lock is held while a file's data is copied, but that file's own.

// A test that cannot go on says so by panicking.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used))]

pub mod backing;
pub mod browse;
pub mod build;
pub mod cli;
pub mod container;
pub mod digest;
pub mod dockerfile;
pub mod erofs;
pub mod fs;
pub mod fuse;
pub mod handover;
pub mod image;
pub mod kernel;
pub mod layer;
pub mod meta;
pub mod name;
pub mod reference;
pub mod registry;
pub mod store;
pub mod sys;
pub mod template;
pub mod tree;
pub mod upper;
pub mod whiteout;
