//! Linux capabilities of a container: Docker's default set, `--cap-add` and `--cap-drop`.

use super::SpecError;
use oci_spec::runtime::{Capabilities, Capability};
use std::str::FromStr;

/// The kernel's capabilities, indexed by number (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];
/// Docker's default set.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];
const ALL: &str = "ALL";

/// A capability set, as a bit mask of capability numbers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Set(pub u64);

impl Set {
    /// Whether the set contains a capability, named without `CAP_`.
    pub fn has(self, name: &str) -> bool {
        number(name).is_some_and(|at| self.0 >> at & 1 == 1)
    }

    /// Converts the set to the type of config.json.
    pub(super) fn document(self) -> Capabilities {
        NAMES.iter().filter(|name| self.has(name)).filter_map(|name| Capability::from_str(name).ok()).collect()
    }
}

fn number(name: &str) -> Option<usize> {
    NAMES.iter().position(|known| *known == name)
}

/// Computes the capability set: the default set, plus `add`, minus `drop`, limited to `available`, this process's
/// bounding set. Fails if `add` has a capability that is not available, or if a name is unknown.
///
/// As in Docker, with `ALL` added only the capabilities dropped by name are missing, and with `ALL` dropped only the
/// added ones are left.
pub(super) fn chosen(add: &[String], drop: &[String], available: Set) -> Result<Set, SpecError> {
    let added = parse("CapAdd", add, available)?;
    let dropped = parse("CapDrop", drop, Set(u64::MAX))?;
    let default = DEFAULT.iter().filter_map(|name| number(name)).fold(0, |set, at| set | 1 << at);
    let set = match (added, dropped) {
        (Named::All, Named::All) => available.0,
        (Named::All, Named::Only(dropped)) => available.0 & !dropped,
        (Named::Only(added), Named::All) => added,
        (Named::Only(added), Named::Only(dropped)) => default & !dropped | added,
    };
    Ok(Set(set & available.0))
}

enum Named {
    All,
    Only(u64),
}

fn parse(option: &'static str, names: &[String], available: Set) -> Result<Named, SpecError> {
    let mut set = 0;
    let mut all = false;
    for name in names {
        let name = name.to_uppercase();
        if name == ALL {
            all = true;
            continue;
        }
        let name = name.strip_prefix("CAP_").unwrap_or(&name);
        let at = number(name).ok_or_else(|| SpecError::UnknownCapability { option, name: name.to_owned() })?;
        if !available.has(name) {
            return Err(SpecError::MissingCapability { option, name: name.to_owned() });
        }
        set |= 1 << at;
    }
    Ok(if all { Named::All } else { Named::Only(set) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(add: &[&str], drop: &[&str]) -> Result<Vec<&'static str>, String> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let set = chosen(&owned(add), &owned(drop), Set((1 << 41) - 1)).map_err(|e| e.to_string())?;
        Ok(NAMES.into_iter().filter(|name| set.has(name)).collect())
    }

    #[test]
    fn every_capability_is_known_to_the_spec() {
        assert_eq!(Set((1 << 41) - 1).document().len(), NAMES.len());
        let mask = pick(&[], &[]).unwrap().iter().fold(0u64, |mask, name| mask | 1 << number(name).unwrap());
        assert_eq!(mask, 0xa804_25fb, "what /proc/self/status shows in a Docker container");
        assert_eq!(number("SYS_ADMIN"), Some(21));
    }

    #[test]
    fn names_are_added_and_dropped_in_any_spelling() {
        let default = pick(&[], &[]).unwrap();
        assert_eq!(default.len(), DEFAULT.len());
        assert!(pick(&["net_admin", "CAP_SYS_TIME"], &[]).unwrap().ends_with(&["AUDIT_WRITE", "SETFCAP"]));
        assert_eq!(pick(&["cap_net_admin"], &["Mknod", "CAP_CHOWN"]).unwrap().len(), DEFAULT.len() - 1);
        assert_eq!(pick(&["CHOWN"], &["CHOWN"]).unwrap().len(), DEFAULT.len(), "what is added stays");
        assert_eq!(pick(&["CHOWN", "CHOWN"], &["all"]).unwrap(), ["CHOWN"]);
        assert!(pick(&[], &["ALL"]).unwrap().is_empty());
        assert_eq!(pick(&["ALL"], &["SYS_ADMIN", "MKNOD"]).unwrap().len(), NAMES.len() - 2);
        assert_eq!(pick(&["all"], &["ALL"]).unwrap().len(), NAMES.len());
    }

    #[test]
    fn unknown_capabilities_give_dockers_errors() {
        let said = |add: &[&str], drop: &[&str]| pick(add, drop).unwrap_err();
        assert_eq!(said(&["x"], &[]), "invalid CapAdd: unknown capability: \"CAP_X\"");
        assert_eq!(said(&[], &["CAP_NONE"]), "invalid CapDrop: unknown capability: \"CAP_NONE\"");
        assert_eq!(said(&[""], &[]), "invalid CapAdd: unknown capability: \"CAP_\"");
        let few = Set(0xa804_25fb & !1);
        let set = chosen(&["ALL".to_owned()], &[], few).unwrap();
        assert_eq!(set, few, "all that can be had");
        assert_eq!(chosen(&[], &[], few).unwrap(), few);
        let said = chosen(&["BPF".to_owned()], &[], few).unwrap_err().to_string();
        assert!(said.starts_with("invalid CapAdd: capability not supported by your kernel"), "{said}");
        assert!(chosen(&[], &["BPF".to_owned()], few).is_ok(), "one that cannot be had anyway");
    }
}
