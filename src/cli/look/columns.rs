//! Names in columns, as ls(1) prints them on a terminal.

use unicode_width::UnicodeWidthStr;

/// Spaces between two columns.
const GAP: usize = 2;

/// Arranges names, given as text and what is printed around it, in as many columns as fit; filled downwards.
pub(super) fn columns(names: &[(String, (String, &str))], width: usize) -> String {
    let widths: Vec<usize> = names.iter().map(|(name, _)| name.width()).collect();
    let fits = |rows: &usize| row_width(&widths, *rows) <= width;
    let rows = (1..names.len()).find(fits).unwrap_or(names.len()).max(1);
    let wide: Vec<usize> = widths.chunks(rows).map(|column| column.iter().max().map_or(0, |most| most + GAP)).collect();
    let mut text = String::new();
    for row in 0..rows.min(names.len()) {
        let mut pad = 0;
        for (column, at) in (row..names.len()).step_by(rows).enumerate() {
            let (name, (before, after)) = &names[at];
            text.extend(std::iter::repeat_n(' ', pad));
            text += before;
            text += name;
            text += after;
            pad = wide[column] - widths[at];
        }
        text.push('\n');
    }
    text
}

/// The width of the lines with so many rows.
fn row_width(widths: &[usize], rows: usize) -> usize {
    let sum: usize = widths.chunks(rows).map(|column| column.iter().max().map_or(0, |most| most + GAP)).sum();
    sum.saturating_sub(GAP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_columns_as_fit_are_filled_downwards() {
        let names = |all: &[&str]| all.iter().map(|name| ((*name).to_owned(), (String::new(), ""))).collect::<Vec<_>>();
        assert_eq!(columns(&names(&["a", "bb", "c"]), 80), "a  bb  c\n");
        assert_eq!(columns(&names(&["a", "bb", "c"]), 6), "a   c\nbb\n");
        assert_eq!(columns(&names(&["aaaa", "bb"]), 3), "aaaa\nbb\n");
        assert_eq!(columns(&names(&[]), 3), "");
    }
}
