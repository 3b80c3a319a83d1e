//! Platforms: operating system, architecture and variant, and the choice of an index's image for a host.

use serde::Deserialize;
use std::fmt;
use std::str::FromStr;

/// An operating system and an architecture, with Go's names: `linux/arm/v7`.
#[derive(Clone, PartialEq, Eq, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Platform {
    /// Operating system: `linux`.
    pub os: String,
    /// Architecture: `amd64`.
    pub architecture: String,
    /// Variant: `v7`; often omitted.
    pub variant: Option<String>,
}

impl Platform {
    /// The host's platform.
    pub fn host() -> Platform {
        let (architecture, variant) = match () {
            _ if cfg!(target_arch = "x86_64") => ("amd64", None),
            _ if cfg!(target_arch = "x86") => ("386", None),
            _ if cfg!(target_arch = "aarch64") => ("arm64", None),
            _ if cfg!(target_arch = "arm") => ("arm", Some("v7")),
            _ if cfg!(target_arch = "riscv64") => ("riscv64", None),
            _ if cfg!(target_arch = "s390x") => ("s390x", None),
            _ if cfg!(target_arch = "loongarch64") => ("loong64", None),
            _ if cfg!(all(target_arch = "powerpc64", target_endian = "little")) => ("ppc64le", None),
            _ => ("unknown", None),
        };
        Platform { os: "linux".into(), architecture: architecture.into(), variant: variant.map(str::to_owned) }
    }

    /// Ranks an image for `self` on `machine`: 0 is best, `None` means that it cannot run.
    pub fn rank(&self, machine: &Platform) -> Option<u32> {
        let (have, want) = (self.normal(), machine.normal());
        if have.os != want.os || have.architecture != want.architecture {
            return None;
        }
        if have.variant == want.variant {
            return Some(0);
        }
        // In these families a newer processor runs images for an older one.
        let graded = matches!(want.architecture.as_str(), "arm" | "arm64" | "amd64");
        let level = |p: &Platform| p.variant.as_deref().and_then(|v| v.strip_prefix('v')?.parse::<u32>().ok());
        match (level(&have), level(&want)) {
            (Some(have), Some(want)) if graded && have < want => Some(want - have),
            (None, _) => Some(100),
            _ => None,
        }
    }

    /// Normalizes the spelling, and adds the variant that a missing one stands for.
    fn normal(&self) -> Platform {
        let os = match self.os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            os => os.to_owned(),
        };
        let (architecture, implied) = match self.architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" | "amd64" => ("amd64".to_owned(), Some("v1")),
            "i386" | "i686" | "386" => ("386".to_owned(), None),
            "aarch64" | "arm64" => ("arm64".to_owned(), Some("v8")),
            "armhf" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            "arm" => ("arm".to_owned(), Some("v7")),
            other => (other.to_owned(), None),
        };
        let given = self.variant.as_deref().filter(|v| !v.is_empty()).map(|v| match v {
            "5" | "6" | "7" | "8" => format!("v{v}"),
            "v8.0" => "v8".to_owned(),
            v => v.to_owned(),
        });
        Platform { os, architecture, variant: given.or(implied.map(str::to_owned)) }
    }
}

impl FromStr for Platform {
    type Err = String;

    fn from_str(text: &str) -> Result<Platform, String> {
        let mut parts = text.split('/');
        let word =
            |p: &str| !p.is_empty() && p.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
        match (parts.next(), parts.next(), parts.next(), parts.next()) {
            (Some(os), Some(arch), variant, None) if word(os) && word(arch) && variant.is_none_or(word) => {
                Ok(Platform { os: os.into(), architecture: arch.into(), variant: variant.map(str::to_owned) })
            }
            _ => Err(format!("`{text}` is not a platform (wanted OS/ARCH or OS/ARCH/VARIANT)")),
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_deref() {
            Some(v) if !v.is_empty() => write!(f, "/{v}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(have: &str, want: &str) -> Option<u32> {
        have.parse::<Platform>().unwrap().rank(&want.parse().unwrap())
    }

    #[test]
    fn variants_of_one_family() {
        assert_eq!(rank("linux/amd64", "linux/amd64"), Some(0));
        assert_eq!(rank("linux/arm64/v8", "linux/arm64"), Some(0));
        assert_eq!(rank("linux/arm/v6", "linux/arm/v7"), Some(1));
        assert_eq!(rank("linux/arm/v7", "linux/arm/v6"), None);
        assert_eq!(rank("linux/arm", "linux/arm/v7"), Some(0));
        assert_eq!(rank("linux/amd64/v3", "linux/amd64"), None);
        assert_eq!(rank("linux/amd64", "linux/amd64/v3"), Some(2));
        assert_eq!(rank("linux/arm64", "linux/amd64"), None);
        assert_eq!(rank("unknown/unknown", "linux/amd64"), None);
        assert_eq!(rank("linux/x86_64", "linux/amd64"), Some(0));
    }

    #[test]
    fn spelling() {
        for bad in ["linux", "linux/", "/amd64", "linux/arm/v7/x", "linux/a b"] {
            assert!(bad.parse::<Platform>().is_err(), "{bad}");
        }
        assert_eq!("linux/arm/v7".parse::<Platform>().unwrap().to_string(), "linux/arm/v7");
    }
}
