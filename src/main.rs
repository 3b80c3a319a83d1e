//! The `plyfs` program: one binary, also reached as `mount.plyfs` by the name it is called under.

fn main() -> std::process::ExitCode {
    plyfs::cli::main(std::env::args_os().collect())
}
