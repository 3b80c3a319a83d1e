//! Signature verification with a cosign public key.
//!
//! Supports both of cosign's formats, each under the signed digest. The older one is an image with the tag
//! `sha256-HEX.sig`, whose layers are "simple signing" payloads with the signature in an annotation. The newer one is a
//! Sigstore bundle among the digest's referrers: a DSSE envelope around an in-toto statement. Only the key is trusted:
//! certificates and the transparency log are ignored. An attestation does not count as a signature of the image.

use super::manifest::{self, DOCUMENT_CAP, Descriptor};
use super::{Error, Problem, Result};
use crate::digest::Digest;
use crate::registry::{Kind, Repository};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer};
use serde::Deserialize;
use std::collections::BTreeMap;
use webpki::RawPublicKeyEntity;

/// Maximum number of signatures of one image, against attacks.
const MANY: usize = 100;
/// Largest signed statement, in bytes.
const STATEMENT_CAP: u64 = 1 << 20;
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const SIMPLE_TYPE: &str = "cosign container image signature";
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const PREDICATE: &str = "dev.sigstore.bundle.predicateType";
const SIGNS_IMAGE: &str = "https://sigstore.dev/cosign/sign/v1";
const IN_TOTO: &str = "application/vnd.in-toto+json";
const STATEMENTS: [&str; 2] = ["https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"];

/// Supported signature algorithms. A key fits one kind of them; elliptic curve keys are tried with two hashes.
static SCHEMES: [&dyn SignatureVerificationAlgorithm; 5] = [
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
];

/// A public key: ECDSA over P-256 or P-384, Ed25519, or RSA.
#[derive(Clone)]
pub struct Key {
    /// Name for messages.
    name: String,
    info: SubjectPublicKeyInfoDer<'static>,
}

/// Result of checking a signature.
enum Verdict {
    /// The image is signed by the key.
    Good,
    /// The key has signed something else, which the text describes.
    Other(String),
    /// The signature is by another key, or invalid.
    Foreign,
}

impl Key {
    /// Parses the public key in a PEM file's content; `name` is for messages.
    pub fn from_pem(name: &str, pem: &[u8]) -> Result<Key> {
        let wrong = |why: &str| Error::Usage(format!("{name} {why}"));
        let info = SubjectPublicKeyInfoDer::from_pem_slice(pem).map_err(|_| wrong("contains no PEM public key"))?;
        let key = Key { name: name.to_owned(), info };
        let fits = |scheme: &&dyn SignatureVerificationAlgorithm| {
            matches!(key.check(*scheme, b"", b""), Some(Err(webpki::Error::InvalidSignatureForPublicKey)))
        };
        if !SCHEMES.iter().any(fits) {
            return Err(wrong("has a key of an unsupported type: wanted P-256, P-384, Ed25519 or RSA"));
        }
        Ok(key)
    }

    fn check(
        &self,
        scheme: &dyn SignatureVerificationAlgorithm,
        message: &[u8],
        signature: &[u8],
    ) -> Option<std::result::Result<(), webpki::Error>> {
        Some(RawPublicKeyEntity::try_from(&self.info).ok()?.verify_signature(scheme, message, signature))
    }

    /// Whether the signature, in base64, is the key's for the message.
    fn signed(&self, message: &[u8], signature: &str) -> bool {
        // Some signers break the base64 text into lines.
        let signature: String = signature.split_whitespace().collect();
        let Ok(signature) = BASE64_STANDARD.decode(signature) else { return false };
        SCHEMES.iter().any(|scheme| matches!(self.check(*scheme, message, &signature), Some(Ok(()))))
    }
}

/// Fails unless the repository has the key's signature of the manifest or index with this digest. `origin` names the
/// image in messages.
pub fn verify(repository: &Repository, key: &Key, digest: &Digest, origin: &str) -> Result<()> {
    let refuse = |why: String| {
        let problem = Problem::Document(format!("{why}; nothing was pulled"));
        Error::Source { origin: origin.to_owned(), problem: Box::new(problem) }
    };
    // A signature that cannot be fetched or read is an error only if no other one is good.
    let (mut count, mut other, mut failed) = (0, None, None);
    for form in [simple, bundles] {
        let candidates = form(repository, digest).unwrap_or_else(|error| {
            failed.get_or_insert(error);
            Vec::new()
        });
        for candidate in candidates {
            count += 1;
            if count > MANY {
                return Err(refuse(format!("there are more than {MANY} signatures of {digest}")));
            }
            match candidate.read(repository, key, digest) {
                Ok(Verdict::Good) => return Ok(()),
                Ok(Verdict::Other(what)) => other = Some(what),
                Ok(Verdict::Foreign) => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
    }
    match failed {
        Some(Problem::Registry(error)) => return Err(error.into()),
        Some(problem) => return Err(refuse(problem.to_string())),
        None => {}
    }
    let key = &key.name;
    Err(refuse(match (count, other) {
        (0, _) => format!("it is not signed: there is no signature of {digest}"),
        (_, Some(what)) => format!("it is not signed by {key}, which has signed {what}, not {digest}"),
        (_, None) => format!("it is not signed by {key}: {digest} has {count} signatures, none by that key"),
    }))
}

/// A possible signature of the image.
enum Candidate {
    /// A payload of the older format, with its signature.
    Simple { payload: Descriptor, signature: String },
    /// The manifest of a bundle.
    Bundle(Digest),
}

#[derive(Deserialize)]
struct Manifest {
    #[serde(default)]
    layers: Vec<Descriptor>,
}

/// Parses an untrusted document; `None` if it is malformed.
fn parsed<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

/// Lists the candidates of the older format.
fn simple(repository: &Repository, digest: &Digest) -> std::result::Result<Vec<Candidate>, Problem> {
    let tag = format!("{}-{}.sig", digest.algorithm().name(), digest.hex());
    let found = match repository.manifest(&tag, &manifest::accept(), DOCUMENT_CAP) {
        Ok(found) => found,
        Err(error) if error.kind == Kind::Missing => return Ok(Vec::new()),
        Err(error) => return Err(Problem::Registry(error)),
    };
    let list = parsed::<Manifest>(&found.bytes);
    let list = list.ok_or_else(|| Problem::Document(format!("{tag} is not a manifest of signatures")))?;
    let signed = list.layers.into_iter().filter(|layer| layer.media_type == SIMPLE_SIGNING);
    let candidate = |mut payload: Descriptor| {
        let signature = payload.annotations.remove(SIGNATURE)?;
        Some(Candidate::Simple { payload, signature })
    };
    Ok(signed.filter_map(candidate).collect())
}

/// Lists the candidates of the newer format.
fn bundles(repository: &Repository, digest: &Digest) -> std::result::Result<Vec<Candidate>, Problem> {
    let referrers = repository.referrers(digest, BUNDLE).map_err(Problem::Registry)?;
    // The list's annotations are untrusted; they only avoid fetching attestations.
    let fits = |predicate: Option<&String>| predicate.is_none_or(|predicate| predicate == SIGNS_IMAGE);
    let bundles = referrers.into_iter().filter(|r| r.artifact_type == BUNDLE && fits(r.annotations.get(PREDICATE)));
    Ok(bundles.map(|r| Candidate::Bundle(r.digest)).collect())
}

impl Candidate {
    /// Fetches the candidate and checks it.
    fn read(&self, repository: &Repository, key: &Key, digest: &Digest) -> std::result::Result<Verdict, Problem> {
        match self {
            Candidate::Simple { payload, signature } => {
                Ok(judge_simple(&fetch(repository, payload)?, signature, key, digest))
            }
            Candidate::Bundle(at) => {
                let found = repository.manifest(&at.to_string(), &manifest::accept(), DOCUMENT_CAP);
                let found = found.map_err(Problem::Registry)?;
                let layers = parsed::<Manifest>(&found.bytes).map(|m| m.layers).unwrap_or_default();
                match layers.iter().find(|layer| layer.media_type == BUNDLE) {
                    Some(layer) => Ok(judge_bundle(&fetch(repository, layer)?, key, digest)),
                    None => Ok(Verdict::Foreign),
                }
            }
        }
    }
}

fn fetch(repository: &Repository, blob: &Descriptor) -> std::result::Result<Vec<u8>, Problem> {
    if blob.size > STATEMENT_CAP {
        let why = format!("signature {} has {} bytes, more than {STATEMENT_CAP}", blob.digest, blob.size);
        return Err(Problem::Document(why));
    }
    repository.small_blob(&blob.digest, blob.size).map_err(Problem::Registry)
}

/// Checks a payload of the older format.
fn judge_simple(payload: &[u8], signature: &str, key: &Key, digest: &Digest) -> Verdict {
    #[derive(Deserialize)]
    struct Payload {
        critical: Critical,
    }
    #[derive(Deserialize)]
    struct Critical {
        image: Image,
        #[serde(rename = "type")]
        kind: String,
    }
    #[derive(Deserialize)]
    struct Image {
        #[serde(rename = "docker-manifest-digest", alias = "Docker-manifest-digest")]
        digest: String,
    }
    if !key.signed(payload, signature) {
        return Verdict::Foreign;
    }
    match parsed::<Payload>(payload).map(|p| p.critical) {
        Some(c) if c.kind == SIMPLE_TYPE && c.image.digest == digest.to_string() => Verdict::Good,
        Some(c) if c.kind == SIMPLE_TYPE => Verdict::Other(c.image.digest.escape_debug().to_string()),
        _ => Verdict::Other("an object that is not an image".into()),
    }
}

/// Checks a bundle.
fn judge_bundle(bundle: &[u8], key: &Key, digest: &Digest) -> Verdict {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Bundle {
        media_type: String,
        dsse_envelope: Envelope,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Envelope {
        payload: String,
        payload_type: String,
        signatures: Vec<Signature>,
    }
    #[derive(Deserialize)]
    struct Signature {
        sig: String,
    }
    let Some(bundle) = parsed::<Bundle>(bundle).filter(|b| b.media_type == BUNDLE) else { return Verdict::Foreign };
    let envelope = bundle.dsse_envelope;
    let Ok(payload) = BASE64_STANDARD.decode(&envelope.payload) else { return Verdict::Foreign };
    // A bundle has exactly one signature.
    let [signature] = envelope.signatures.as_slice() else { return Verdict::Foreign };
    if !key.signed(&dsse_message(&envelope.payload_type, &payload), &signature.sig) {
        return Verdict::Foreign;
    }
    if envelope.payload_type != IN_TOTO {
        return Verdict::Other("an object that is not an image".into());
    }
    judge_statement(&payload, digest)
}

/// Returns the signed message of a DSSE envelope (PAE encoding).
fn dsse_message(kind: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

/// Checks an in-toto statement whose signature by the key is valid.
fn judge_statement(payload: &[u8], digest: &Digest) -> Verdict {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Statement {
        #[serde(rename = "_type")]
        kind: String,
        predicate_type: String,
        subject: Vec<Subject>,
    }
    #[derive(Deserialize)]
    struct Subject {
        digest: BTreeMap<String, String>,
    }
    let statement = parsed::<Statement>(payload).filter(|s| STATEMENTS.contains(&s.kind.as_str()));
    let Some(statement) = statement.filter(|s| s.predicate_type == SIGNS_IMAGE) else {
        return Verdict::Other("an attestation".into());
    };
    let algorithm = digest.algorithm().name();
    if statement.subject.iter().any(|s| s.digest.get(algorithm).is_some_and(|hex| hex == digest.hex())) {
        return Verdict::Good;
    }
    let first = statement.subject.first().and_then(|s| s.digest.first_key_value());
    Verdict::Other(first.map_or("nothing".into(), |(how, hex)| format!("{how}:{hex}").escape_debug().to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A signature made by cosign itself, as published with its Rust library.
    const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAENptdY/l3nB0yqkXLBWkZWQwo6+cu
OSWS1X9vPavpiQOoTTGC0xX57OojUadxF1cdQmrsiReWg2Wn4FneJfa8xw==
-----END PUBLIC KEY-----
";
    const SIGNATURE: &str =
        "MEUCIQD6q/COgzOyW0YH1Dk+CCYSt4uAhm3FDHUwvPI55zwnlwIgE0ZK58ZOWpZw8YVmBapJhBqCfdPekIknimuO0xH8Jh8=";
    const PAYLOAD: &str = r#"{"critical":{"identity":{"docker-reference":"registry-testing.svc.lan/busybox"},"image":{"docker-manifest-digest":"sha256:f3cfc9d0dbf931d3db4685ec659b7ac68e2a578219da4aae65427886e649b06b"},"type":"cosign container image signature"},"optional":null}"#;
    const SIGNED: &str = "sha256:f3cfc9d0dbf931d3db4685ec659b7ac68e2a578219da4aae65427886e649b06b";

    #[test]
    fn a_signature_by_cosign() {
        let key = Key::from_pem("k", PUBLIC.as_bytes()).unwrap();
        let judge = |payload: &str, signature: &str, digest: &str| {
            judge_simple(payload.as_bytes(), signature, &key, &digest.parse().unwrap())
        };
        assert!(matches!(judge(PAYLOAD, SIGNATURE, SIGNED), Verdict::Good));
        let broken = format!("{}\n{}\n", &SIGNATURE[..44], &SIGNATURE[44..]);
        assert!(matches!(judge(PAYLOAD, &broken, SIGNED), Verdict::Good));
        let other = Digest::of(b"other").to_string();
        assert!(matches!(judge(PAYLOAD, SIGNATURE, &other), Verdict::Other(what) if what == SIGNED));
        assert!(matches!(judge(&PAYLOAD.replace("busybox", "busybux"), SIGNATURE, SIGNED), Verdict::Foreign));
        for odd in ["", "=", "AAAA", "MEUC", &SIGNATURE[4..]] {
            assert!(matches!(judge(PAYLOAD, odd, SIGNED), Verdict::Foreign), "{odd}");
        }
    }

    #[test]
    fn what_is_no_key() {
        let wrong = |pem: &str| Key::from_pem("key.pub", pem.as_bytes()).err().unwrap().to_string();
        assert_eq!(wrong(""), "key.pub contains no PEM public key");
        assert_eq!(wrong(&PUBLIC.replace("PUBLIC", "PRIVATE")), "key.pub contains no PEM public key");
        let odd = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n";
        assert!(wrong(odd).contains("a key of an unsupported type"));
    }

    #[test]
    fn the_message_of_an_envelope() {
        assert_eq!(
            dsse_message("http://example.com/HelloWorld", b"hello world"),
            b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
        );
    }
}
