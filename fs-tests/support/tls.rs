//! TLS certificates for test servers and their clients.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::env::run;

/// Creates a certificate authority (`ca.crt`) in a directory, and two certificates signed by it, with their keys: a
/// server's for 127.0.0.1 (`server.crt`) and a client's (`client.cert`).
pub fn certificates(dir: &Path) {
    let script = "set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-ca \
            -keyout ca.key -out ca.crt -addext basicConstraints=critical,CA:TRUE
        printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' > ext
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
            openssl x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out $name.crt
        done
        mv client.crt client.cert";
    fs::create_dir_all(dir).unwrap();
    let done = run(Command::new("sh").args(["-c", script]).current_dir(dir));
    assert_eq!(done.code, 0, "{done:?}");
}

/// Copies files from one directory into another, which it creates.
pub fn copy(from: &Path, to: &Path, names: &[&str]) {
    fs::create_dir_all(to).unwrap();
    for name in names {
        fs::copy(from.join(name), to.join(name)).unwrap();
    }
}
