//! Floating-point numbers as Go writes them.

/// `%v` and `%g`: the shortest text that reads back as the same number; an exponent below -4 and from 6 on is written
/// out.
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

/// As JSON has it; Go writes exponents below 1e-6 and from 1e21 on.
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

/// `%e` with so many decimals.
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

/// `%f` with so many decimals.
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

/// `%.Ng`: so many significant digits.
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
