//! The `plyfs` executable. Called as `mount.plyfs` or `fuse-overlayfs`, it behaves as that program.

fn main() -> std::process::ExitCode {
    plyfs::cli::main(std::env::args_os().collect())
}
