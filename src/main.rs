//! The `plyfs` program: one binary, also reached as `mount.plyfs` by the name it is called under.

fn main() {}
