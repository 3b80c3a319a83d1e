//! Container names: syntax check, and generated names for containers created without `--name`.

/// Whether a text is a valid container name: `[a-zA-Z0-9][a-zA-Z0-9_.-]+`.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !text[1..].is_empty()
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

const ADJECTIVES: [&str; 40] = [
    "able", "airy", "amber", "bold", "brave", "brisk", "calm", "clear", "clever", "coral", "crisp", "deft", "eager",
    "early", "fair", "fine", "fleet", "fond", "frank", "gentle", "glad", "golden", "hardy", "jolly", "keen", "kind",
    "lively", "lucid", "merry", "neat", "noble", "plain", "proud", "quick", "quiet", "ready", "sharp", "steady",
    "warm", "wise",
];
const NOUNS: [&str; 40] = [
    "alder", "ash", "aspen", "badger", "beech", "birch", "bison", "cedar", "crane", "dove", "elder", "elm", "falcon",
    "fern", "finch", "fir", "hare", "hawk", "hazel", "heron", "holly", "ibis", "ivy", "juniper", "larch", "lark",
    "linden", "lynx", "maple", "marten", "oak", "osprey", "otter", "pine", "plover", "raven", "rowan", "swift",
    "willow", "wren",
];

/// Generates a name, `ADJECTIVE_NOUN`, from a container ID of 64 hex digits.
pub fn name_of(id: &str) -> String {
    let number =
        |at: usize| id.get(at..at + 8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    format!("{}_{}", ADJECTIVES[number(0) as usize % ADJECTIVES.len()], NOUNS[number(8) as usize % NOUNS.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dockers() {
        for good in ["a1", "web.1", "a_b-c", "0x"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a", "-a", "_a", "a b", "a/b", "é1"] {
            assert!(!is_name(bad), "{bad}");
        }
        assert!(is_name(&name_of(&"9f".repeat(32))));
    }
}
