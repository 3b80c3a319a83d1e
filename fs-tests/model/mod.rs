//! Model-based tests: a model file system in memory, random steps, and harnesses that carry the steps out.
//!
//! A run is a list of [`op::Op`]s. For each, the [`state::Model`] says what a POSIX file system on Linux answers when
//! root asks, and a [`harness::Harness`] does it for real; any difference ends the run. Whole trees are compared now
//! and then too. A run that fails is made as short as possible and printed as Rust.
//!
//! | module | what it is |
//! | --- | --- |
//! | [`op`] | the vocabulary |
//! | [`random`] | numbers from a seed |
//! | [`image`] | the tree that every run begins with: as a list, as files, as layers |
//! | [`state`], [`names`], [`data`] | the model: inodes and paths, steps on names, steps on contents and attributes |
//! | [`generate`] | a list of steps from a seed |
//! | [`harness`], [`by_path`] | the interface that carries steps out; by system calls on a directory |
//! | [`by_inode`], [`inodes`] | without a kernel, on a file system's own operations |
//! | [`in_memory`] | the model as such a file system, which shows that `by_inode` is right |
//! | [`place`], [`mounted`] | the file systems under test: a plain directory, kernel overlayfs, plyfs |
//! | [`engines`] | an upper directory that both engines use in turn |
//! | [`directories`] | the image as plain directories, merged by plyfs: without a kernel, and mounted |
//! | [`check`] | what makes a tree equal to the model |
//! | [`run`] | runs, shrinking, reports |

pub mod by_inode;
pub mod by_path;
pub mod check;
pub mod data;
pub mod directories;
pub mod engines;
pub mod generate;
pub mod harness;
pub mod image;
pub mod in_memory;
pub mod inodes;
pub mod mounted;
pub mod names;
pub mod op;
pub mod place;
pub mod random;
pub mod run;
pub mod state;
pub mod union;
