//! Signal names and numbers, as in signal(7).

/// Signal names without `SIG`, and their numbers on x86 and ARM.
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

/// Parses a signal: a name with or without `SIG`, in any case, or a number. Real-time signals are `RTMIN+N` and
/// `RTMAX-N`.
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
