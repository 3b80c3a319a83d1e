//! Signature verification (`pull --verify`) of images signed as cosign signs them, with keys and signatures from
//! openssl.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use super::support::env::{Output, TestEnv, run};
use super::support::oci::{Image, descriptor, digest};
use super::support::registry::{Content, Reply, Request, Server, pull};
use super::support::tar::Tar;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const SIMPLE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const SIGN: &str = "https://sigstore.dev/cosign/sign/v1";

/// One key pair of each type: `NAME.pem` with `NAME.pub`.
struct Keys {
    env: TestEnv,
}

impl Keys {
    fn new() -> Self {
        let env = TestEnv::new();
        let script = "set -e
            openssl ecparam -genkey -name prime256v1 -noout -out p256.pem
            openssl ecparam -genkey -name prime256v1 -noout -out other.pem
            openssl ecparam -genkey -name secp384r1 -noout -out p384.pem
            openssl ecparam -genkey -name secp521r1 -noout -out p521.pem
            openssl genpkey -algorithm ed25519 -out ed25519.pem
            openssl genpkey -algorithm rsa -pkeyopt rsa_keygen_bits:2048 -out rsa.pem
            for key in *.pem; do openssl pkey -in $key -pubout -out ${key%.pem}.pub; done";
        let done = run(Command::new("sh").args(["-c", script]).current_dir(env.path("")));
        assert_eq!(done.code, 0, "{done:?}");
        Self { env }
    }

    fn public(&self, key: &str) -> PathBuf {
        self.env.path(format!("{key}.pub"))
    }

    /// Signs the bytes with a key; returns base64.
    fn sign(&self, key: &str, bytes: &[u8]) -> String {
        fs::write(self.env.path("message"), bytes).unwrap();
        let how = match key {
            "ed25519" => "openssl pkeyutl -sign -rawin -inkey ed25519.pem -in message".to_owned(),
            _ => format!("openssl dgst -sha256 -sign {key}.pem message"),
        };
        let done = run(Command::new("sh").args(["-c", &format!("{how} | base64 -w0")]).current_dir(self.env.path("")));
        assert!(done.code == 0 && !done.stdout.is_empty(), "{done:?}");
        done.stdout
    }
}

/// The replies of a registry about an image's signatures, by path.
#[derive(Default, Clone)]
struct Signatures {
    files: BTreeMap<String, (String, Vec<u8>)>,
    layers: Vec<Value>,
    referrers: Vec<Value>,
}

impl Signatures {
    fn put(&mut self, path: String, kind: &str, bytes: Vec<u8>) {
        self.files.insert(format!("/v2/team/app/{path}"), (kind.to_owned(), bytes));
    }

    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Value {
        self.put(format!("blobs/{}", digest(bytes)), "application/octet-stream", bytes.to_vec());
        descriptor(bytes, kind)
    }

    /// Adds a signature in the older form (a tag) to the manifest with digest `of`.
    fn simple(mut self, of: &str, payload: &[u8], signature: &str) -> Self {
        let mut layer = self.blob(SIMPLE, payload);
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": signature});
        self.layers.push(layer);
        let config = self.blob("application/vnd.oci.image.config.v1+json", b"{}");
        let list = json!({"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": self.layers});
        self.put(format!("manifests/{}.sig", of.replace(':', "-")), MANIFEST, list.to_string().into());
        self
    }

    /// Adds a bundle. `listed` or `tagged` publishes the list of referrers.
    fn bundle(mut self, of: &str, bundle: &Value) -> Self {
        let layer = self.blob(BUNDLE, bundle.to_string().as_bytes());
        let config = self.blob("application/vnd.oci.empty.v1+json", b"{}");
        let list = json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "artifactType": BUNDLE, "config": config, "layers": [layer],
            "subject": {"mediaType": MANIFEST, "digest": of, "size": 1},
        });
        let bytes = list.to_string().into_bytes();
        let mut entry = descriptor(&bytes, MANIFEST);
        entry["artifactType"] = json!(BUNDLE);
        self.referrers.push(entry);
        self.put(format!("manifests/{}", digest(&bytes)), MANIFEST, bytes);
        self
    }

    fn index(&self) -> Vec<u8> {
        json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": self.referrers}).to_string().into()
    }

    /// The registry has the referrers API.
    fn listed(mut self, of: &str) -> Self {
        let index = self.index();
        self.put(format!("referrers/{of}"), INDEX, index);
        self
    }

    /// The registry has no referrers API, and an index under a tag instead.
    fn tagged(mut self, of: &str) -> Self {
        let index = self.index();
        self.put(format!("manifests/{}", of.replace(':', "-")), INDEX, index);
        self
    }

    fn reply(&self, request: &Request) -> Option<Reply> {
        let path = request.path.split('?').next().unwrap();
        let (kind, bytes) = self.files.get(path)?;
        Some(Reply::new(200).header("Content-Type", kind).body(bytes.clone()))
    }
}

/// `team/app:1`, and its manifest's digest.
fn app() -> (Content, String) {
    let tar = Tar::new().file("a", vec![7; 3000]).finish();
    Content::of(&Image::new().layer(tar), "team/app", "1")
}

fn payload(kind: &str, digest: &str) -> Vec<u8> {
    json!({
        "critical": {"identity": {"docker-reference": "x/app"}, "image": {"docker-manifest-digest": digest}, "type": kind},
        "optional": null,
    })
    .to_string()
    .into()
}

fn cosign(digest: &str) -> Vec<u8> {
    payload("cosign container image signature", digest)
}

fn statement(predicate: &str, digest: &str) -> Vec<u8> {
    let subject = json!([{"digest": {"sha256": digest.trim_start_matches("sha256:")}}]);
    json!({"_type": "https://in-toto.io/Statement/v1", "subject": subject, "predicateType": predicate, "predicate": {}})
        .to_string()
        .into()
}

fn base64(bytes: &[u8]) -> String {
    let file = TestEnv::new();
    fs::write(file.path("x"), bytes).unwrap();
    run(Command::new("base64").arg("-w0").arg(file.path("x"))).stdout
}

/// A sigstore bundle around the payload.
fn bundle(keys: &Keys, key: &str, kind: &str, payload: &[u8]) -> Value {
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    let signature = keys.sign(key, &[head.as_bytes(), payload].concat());
    json!({
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": "x"}, "tlogEntries": []},
        "dsseEnvelope": {"payload": base64(payload), "payloadType": kind, "signatures": [{"sig": signature, "keyid": ""}]},
    })
}

/// Pulls `NAME` from a registry that has these signatures.
fn verify(keys: &Keys, key: &str, signatures: &Signatures, name: &str) -> (Output, Server, TestEnv) {
    let ((content, _), signatures) = (app(), signatures.clone());
    let server = Server::start(move |request| signatures.reply(request).unwrap_or_else(|| content.reply(request)));
    let env = TestEnv::new();
    let name = format!("{}/team/app{name}", server.host);
    let out = pull(&env, &name, &["--verify", keys.public(key).to_str().unwrap()]);
    (out, server, env)
}

#[track_caller]
fn assert_verified(keys: &Keys, key: &str, signatures: &Signatures) {
    let (_, of) = app();
    for name in [":1".to_owned(), format!("@{of}")] {
        let (out, _, env) = verify(keys, key, signatures, &name);
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{key} {name}");
        env.ok(["system", "fsck"]);
    }
}

/// Requires that nothing is pulled, that no part of the image is requested, and that one line gives the reason.
#[track_caller]
fn assert_rejected(keys: &Keys, signatures: &Signatures, words: &[&str]) {
    let (content, of) = app();
    let (layer, _) = content.biggest();
    for name in [":1".to_owned(), format!("@{of}")] {
        let (out, server, env) = verify(keys, "p256", signatures, &name);
        assert_eq!(out.code, 1, "{out:#?}");
        let last = out.stderr.lines().last().unwrap_or_default();
        assert!(last.starts_with(&format!("Error: {}", server.host)), "{out:#?}");
        for word in words {
            assert!(last.contains(word), "`{word}` is not in: {last}");
        }
        assert_eq!(out.stdout, "");
        assert_eq!(env.ok(["images", "-aq"]), "");
        assert_eq!(server.count(&layer), 0, "a layer was fetched before its signature was seen");
    }
}

#[test]
fn signatures_under_a_tag_are_verified() {
    let (keys, (_, of)) = (Keys::new(), app());
    let by = |key: &str| Signatures::default().simple(&of, &cosign(&of), &keys.sign(key, &cosign(&of)));
    for key in ["p256", "p384", "ed25519", "rsa"] {
        assert_verified(&keys, key, &by(key));
    }
    // One valid signature among several suffices.
    let other = digest(b"other");
    let second = by("other").simple(&of, &cosign(&other), &keys.sign("p256", &cosign(&other)));
    assert_verified(&keys, "p256", &second.simple(&of, &cosign(&of), &keys.sign("p256", &cosign(&of))));
}

#[test]
fn sigstore_bundles_are_verified() {
    let (keys, (_, of)) = (Keys::new(), app());
    let kind = "application/vnd.in-toto+json";
    for key in ["p256", "ed25519"] {
        let signed = Signatures::default().bundle(&of, &bundle(&keys, key, kind, &statement(SIGN, &of)));
        assert_verified(&keys, key, &signed.clone().listed(&of));
        assert_verified(&keys, key, &signed.tagged(&of));
    }
    let attested = bundle(&keys, "p256", kind, &statement("https://slsa.dev/provenance/v1", &of));
    let both = Signatures::default().bundle(&of, &attested);
    assert_rejected(&keys, &both.clone().listed(&of), &["it is not signed by", "which has signed an attestation"]);
    assert_verified(&keys, "p256", &both.bundle(&of, &bundle(&keys, "p256", kind, &statement(SIGN, &of))).listed(&of));
}

#[test]
fn missing_and_wrong_signatures_are_refused() {
    let (keys, (_, of)) = (Keys::new(), app());
    let other = digest(b"other");
    let none = Signatures::default();
    let name = keys.public("p256").display().to_string();
    assert_rejected(&keys, &none, &[&format!("it is not signed: there is no signature of {of}; nothing was pulled")]);
    let simple = |payload: &[u8], signature: &str| Signatures::default().simple(&of, payload, signature);
    let by = |key: &str, payload: &[u8]| simple(payload, &keys.sign(key, payload));
    assert_rejected(&keys, &by("other", &cosign(&of)), &[&name, "1 signatures, none by that key"]);
    assert_rejected(&keys, &by("p256", &cosign(&other)), &[&name, &format!("which has signed {other}, not {of}")]);
    assert_rejected(
        &keys,
        &by("p256", &payload("atomic container signature", &of)),
        &["an object that is not an image"],
    );
    assert_rejected(&keys, &by("p256", b"no JSON"), &["an object that is not an image"]);
    // The signature is of other bytes, empty, or not base64.
    let signature = keys.sign("p256", &cosign(&other));
    for odd in [signature.as_str(), "", "????"] {
        assert_rejected(&keys, &simple(&cosign(&of), odd), &["none by that key"]);
    }
    // Bundles: another key, another digest, another payload type, no list, no bundle.
    let kind = "application/vnd.in-toto+json";
    let listed = |bundle: &Value| Signatures::default().bundle(&of, bundle).listed(&of);
    assert_rejected(&keys, &listed(&bundle(&keys, "other", kind, &statement(SIGN, &of))), &["none by that key"]);
    let (hers, his) = (bundle(&keys, "p256", kind, &statement(SIGN, &other)), statement(SIGN, &of));
    assert_rejected(&keys, &listed(&hers), &[&format!("which has signed {other}, not {of}")]);
    assert_rejected(&keys, &listed(&bundle(&keys, "p256", "text/plain", &his)), &["an object that is not an image"]);
    let mut edited = bundle(&keys, "p256", kind, &his);
    edited["dsseEnvelope"]["payload"] = json!(base64(&statement(SIGN, &other)));
    assert_rejected(&keys, &listed(&edited), &["none by that key"]);
    let mut twice = bundle(&keys, "p256", kind, &his);
    let one = twice["dsseEnvelope"]["signatures"][0].clone();
    twice["dsseEnvelope"]["signatures"] = json!([one, one]);
    assert_rejected(&keys, &listed(&twice), &["none by that key"]);
    for odd in [json!({}), json!([]), json!({"mediaType": BUNDLE, "dsseEnvelope": 1})] {
        assert_rejected(&keys, &listed(&odd), &["none by that key"]);
    }
}

#[test]
fn oversized_and_malformed_signatures_are_refused() {
    let (keys, (_, of)) = (Keys::new(), app());
    let (payload, signature) = (cosign(&of), keys.sign("other", &cosign(&of)));
    let mut many = Signatures::default();
    for _ in 0..101 {
        many = many.simple(&of, &payload, &signature);
    }
    // Also with a valid signature at the end.
    let many = many.simple(&of, &payload, &keys.sign("p256", &payload));
    assert_rejected(&keys, &many, &["more than 100 signatures"]);
    let long = [payload.clone(), vec![b' '; 1 << 20]].concat();
    let big = Signatures::default().simple(&of, &long, &keys.sign("p256", &long));
    assert_rejected(&keys, &big, &["bytes, more than 1048576"]);
    let mut swapped = Signatures::default().simple(&of, &payload, &keys.sign("p256", &payload));
    let path = format!("/v2/team/app/blobs/{}", digest(&payload));
    swapped.files.get_mut(&path).unwrap().1[3] ^= 1;
    assert_rejected(&keys, &swapped, &["it has digest"]);
    swapped.files.remove(&path);
    assert_rejected(&keys, &swapped, &["404"]);
    let mut html = Signatures::default();
    html.put(format!("manifests/{}.sig", of.replace(':', "-")), "text/html", "<html>".into());
    assert_rejected(&keys, &html, &["is not a manifest of signatures"]);
    // A signature that cannot be fetched does not matter if another one is valid.
    swapped = swapped.simple(&of, &cosign(&of), &keys.sign("p256", &cosign(&of)));
    swapped.files.insert(path, (SIMPLE.into(), cosign(&of)));
    assert_verified(&keys, "p256", &swapped);
}

#[test]
fn unusable_keys_and_sources_that_are_no_registry_are_refused() {
    let (keys, (content, _)) = (Keys::new(), app());
    let server = Server::start(move |request| content.reply(request));
    let fails = |key: &str, image: &str, words: &str| {
        let out = pull(&TestEnv::new(), image, &["--verify", keys.env.path(key).to_str().unwrap()]);
        assert_eq!((out.code, out.stdout.as_str(), out.stderr.lines().count()), (1, "", 1), "{out:#?}");
        assert!(out.stderr.contains(words), "`{words}`: {out:#?}");
    };
    let name = format!("{}/team/app:1", server.host);
    fails("p521.pub", &name, "p521.pub has a key of an unsupported type");
    fails("p256.pem", &name, "p256.pem contains no PEM public key");
    fails("nowhere.pub", &name, "cannot read /");
    fails("p256.pub", "oci:/nowhere", "--verify needs an image in a registry");
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn an_index_is_signed_as_a_whole() {
    let (keys, (content, manifest)) = (Keys::new(), app());
    let bytes = content.reply(&get_request(&format!("/v2/team/app/manifests/{manifest}"))).into_body();
    let mut entry = descriptor(&bytes, MANIFEST);
    entry["platform"] = json!({"os": "linux", "architecture": "amd64"});
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}).to_string().into_bytes();
    let root = digest(&index);
    let pulls = |of: &str| {
        let mut signed = Signatures::default().simple(of, &cosign(of), &keys.sign("p256", &cosign(of)));
        signed.put("manifests/multi".into(), INDEX, index.clone());
        let content = content.clone();
        let server = Server::start(move |request| signed.reply(request).unwrap_or_else(|| content.reply(request)));
        let key = keys.public("p256");
        let more = ["--platform", "linux/amd64", "--verify", key.to_str().unwrap()];
        pull(&TestEnv::new(), &format!("{}/team/app:multi", server.host), &more)
    };
    let out = pulls(&root);
    assert_eq!((out.code, out.stderr.as_str()), (0, ""));
    let out = pulls(&manifest);
    assert!(out.code == 1 && out.stderr.contains(&format!("no signature of {root}")), "{out:#?}");
}

#[test]
fn pulling_all_tags_skips_signature_tags() {
    let (keys, (content, of)) = (Keys::new(), app());
    let tag = of.replace(':', "-");
    let mut signed = Signatures::default().simple(&of, &cosign(&of), &keys.sign("p256", &cosign(&of)));
    let tags = json!({"tags": [format!("{tag}.sig"), tag, format!("{tag}.att"), "1"]}).to_string();
    signed.put("tags/list".into(), "application/json", tags.into());
    let server = Server::start(move |request| signed.reply(request).unwrap_or_else(|| content.reply(request)));
    let (env, key) = (TestEnv::new(), keys.public("p256"));
    let name = format!("{}/team/app", server.host);
    for more in [["-a", "--quiet"].as_slice(), &["-a", "--verify", key.to_str().unwrap()]] {
        let out = pull(&env, &name, more);
        assert_eq!((out.code, out.stderr.as_str()), (0, ""), "{out:#?}");
    }
    assert_eq!(env.ok(["images", "-q"]).lines().count(), 1);
}

fn get_request(path: &str) -> Request {
    let (method, path) = ("GET".into(), path.into());
    Request { method, path, headers: Default::default(), body: String::new(), bytes: vec![], before: 0 }
}
