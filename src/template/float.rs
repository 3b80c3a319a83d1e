//! Floating-point formatting, as Go's strconv does it.

/// `%v` and `%g`: the shortest text that parses to the same number; with an exponent if it is below -4 or at least 6.
pub(super) fn general(value: f64) -> String {
    shortest(value, -4, 6)
}

fn shortest(value: f64, low: i32, high: i32) -> String {
    if !value.is_finite() {
        return special(value).into();
    }
    let text = format!("{value:e}");
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if value != 0.0 && (exponent < low || exponent >= high) {
        return format!("{mantissa}e{}", signed(exponent));
    }
    format!("{value}")
}

/// JSON: with an exponent below 1e-6 and from 1e21 on, as Go does.
pub(super) fn json(value: f64) -> String {
    if !value.is_finite() {
        return "null".into();
    }
    let text = shortest(value, -6, 21);
    // Go shortens e-09 to e-9 here.
    match text.split_once("e-0") {
        Some((mantissa, digit)) => format!("{mantissa}e-{digit}"),
        None => text,
    }
}

/// `%e` with the given number of decimals.
pub(super) fn scientific(value: f64, decimals: usize) -> String {
    if !value.is_finite() {
        return special(value).into();
    }
    let text = format!("{value:.decimals$e}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => format!("{mantissa}e{}", signed(exponent.parse().unwrap_or_default())),
        None => text,
    }
}

/// `%f` with the given number of decimals.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    if value.is_finite() { format!("{value:.decimals$}") } else { special(value).into() }
}

fn special(value: f64) -> &'static str {
    match value {
        v if v.is_nan() => "NaN",
        v if v < 0.0 => "-Inf",
        _ => "+Inf",
    }
}

fn signed(exponent: i32) -> String {
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{sign}{:02}", exponent.abs())
}

/// `%.Ng`: the given number of significant digits.
pub(super) fn significant(value: f64, digits: usize) -> String {
    if !value.is_finite() {
        return special(value).into();
    }
    let digits = digits.max(1);
    let text = scientific(value, digits - 1);
    let Some((mantissa, exponent)) = text.split_once('e') else { return text };
    let exponent: i32 = exponent.parse().unwrap_or_default();
    let short = |t: &str| {
        if t.contains('.') { t.trim_end_matches('0').trim_end_matches('.').to_owned() } else { t.to_owned() }
    };
    let wide = i32::try_from(digits).unwrap_or(i32::MAX);
    if exponent < -4 || exponent >= wide {
        return format!("{}e{}", short(mantissa), signed(exponent));
    }
    short(&fixed(value, usize::try_from(wide - 1 - exponent).unwrap_or(0)))
}
