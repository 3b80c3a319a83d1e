//! Words for containers: their names, and signals.

/// Whether a container can have that name.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphanumeric())
        && !text[1..].is_empty()
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

const HOW: [&str; 40] = [
    "able", "airy", "amber", "bold", "brave", "brisk", "calm", "clear", "clever", "coral", "crisp", "deft", "eager",
    "early", "fair", "fine", "fleet", "fond", "frank", "gentle", "glad", "golden", "hardy", "jolly", "keen", "kind",
    "lively", "lucid", "merry", "neat", "noble", "plain", "proud", "quick", "quiet", "ready", "sharp", "steady",
    "warm", "wise",
];
const WHAT: [&str; 40] = [
    "alder", "ash", "aspen", "badger", "beech", "birch", "bison", "cedar", "crane", "dove", "elder", "elm", "falcon",
    "fern", "finch", "fir", "hare", "hawk", "hazel", "heron", "holly", "ibis", "ivy", "juniper", "larch", "lark",
    "linden", "lynx", "maple", "marten", "oak", "osprey", "otter", "pine", "plover", "raven", "rowan", "swift",
    "willow", "wren",
];

/// Two words for a container with that ID, 64 hex digits.
pub fn name_of(id: &str) -> String {
    let number =
        |at: usize| id.get(at..at + 8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
    format!("{}_{}", HOW[number(0) as usize % HOW.len()], WHAT[number(8) as usize % WHAT.len()])
}

/// The signals of x86 and ARM, by their names without `SIG`.
const SIGNALS: [(&str, i32); 33] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// The signal that a name, with or without `SIG`, or a number means.
pub fn signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return ((1..=31).contains(&number) || REAL_TIME.contains(&number)).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest[1..].parse::<i32>().ok() };
    let real_time = name.strip_prefix("RTMIN").and_then(|rest| Some(REAL_TIME.start() + offset(rest)?));
    let real_time =
        real_time.or_else(|| name.strip_prefix("RTMAX").and_then(|rest| Some(REAL_TIME.end() - offset(rest)?)));
    let plain = SIGNALS.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    plain.or(real_time.filter(|number| REAL_TIME.contains(number)))
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

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in
            [("TERM", 15), ("sigkill", 9), ("9", 9), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("RTMIN", 34)]
        {
            assert_eq!(signal(text), Some(number), "{text}");
        }
        for bad in ["", "0", "65", "-9", "SIGNO", "RTMIN+31", "32", "RTMAX-", "SIGRTMIN3é"] {
            assert_eq!(signal(bad), None, "{bad}");
        }
    }
}
