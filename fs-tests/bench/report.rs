//! Samples, their medians, the table and the JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// What one row counts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Milliseconds.
    Milliseconds,
    /// Microseconds for each call.
    Microseconds,
    /// Mebibytes.
    Mebibytes,
    /// Bytes for each entry of the image.
    BytesPerEntry,
}

impl Unit {
    fn name(self) -> &'static str {
        match self {
            Unit::Milliseconds => "ms",
            Unit::Microseconds => "us/call",
            Unit::Mebibytes => "MiB",
            Unit::BytesPerEntry => "B/entry",
        }
    }
}

/// What a median is to be held against.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At most this part of another engine's.
    Ratio(&'static str, f64),
    /// At most so many of the row's unit more than another engine's.
    More(&'static str, f64),
    /// At most so many of the row's unit.
    Below(f64),
}

/// All samples of all rows, rows in the order in which they first came.
#[derive(Default)]
pub struct Samples {
    rows: Vec<(String, Unit, BTreeMap<String, Vec<f64>>)>,
}

/// The engine that the ratios of mounts are to.
pub const BASE: &str = "overlayfs";
const LABEL: usize = 20;
const CELL: usize = 15;

impl Samples {
    /// Have a row, even if no engine ever fills it. Returns its place.
    pub fn row(&mut self, row: &str, unit: Unit) -> usize {
        self.rows.iter().position(|(name, ..)| name == row).unwrap_or_else(|| {
            self.rows.push((row.to_owned(), unit, BTreeMap::new()));
            self.rows.len() - 1
        })
    }

    /// Keep a sample.
    pub fn add(&mut self, row: &str, unit: Unit, engine: &str, value: f64) {
        let at = self.row(row, unit);
        self.rows[at].2.entry(engine.to_owned()).or_default().push(value);
    }

    /// The table, with ratios to the engine `base`: a block of columns for as many engines as fit in 100 columns.
    pub fn print(&self, engines: &[String], base: &str) {
        for block in engines.chunks((100 - LABEL - 8) / CELL) {
            print!("\n{:LABEL$}{:>8}", "median (ratio)", "unit");
            block.iter().for_each(|engine| print!("{:>CELL$}", engine.chars().take(CELL - 1).collect::<String>()));
            println!();
            for (name, unit, samples) in &self.rows {
                print!("{name:LABEL$}{:>8}", unit.name());
                block.iter().for_each(|engine| print!("{:>CELL$}", cell(samples, engine, base)));
                println!();
            }
        }
        println!("\nMedians; in parentheses the ratio to {base}.");
    }

    /// One line for each goal that there are figures for.
    pub fn print_goals(&self, engine: &str, goals: &[(&str, Goal)]) {
        for (row, goal) in goals {
            let Some((name, unit, samples)) = self.rows.iter().find(|(name, ..)| name == row) else { continue };
            let of = |engine: &str| samples.get(engine).and_then(|values| median(values));
            let (figure, limit, said) = match goal {
                Goal::Ratio(base, limit) => {
                    (of(engine).zip(of(base)).map(|(a, b)| a / b), limit, format!(" of {base}"))
                }
                Goal::More(base, limit) => {
                    let more = of(engine).zip(of(base)).map(|(a, b)| a - b);
                    (more, limit, format!(" {} more than {base}", unit.name()))
                }
                Goal::Below(limit) => (of(engine), limit, format!(" {}", unit.name())),
            };
            let Some(figure) = figure else { continue };
            let verdict = if figure <= *limit { "met" } else { "MISSED" };
            println!("goal {verdict}: {engine}, {name}: {}{said}, at most {limit}", short(figure));
        }
    }

    /// Every sample and median, for a program.
    pub fn json(&self) -> Value {
        let rows = self.rows.iter().map(|(name, unit, samples)| {
            let engines: BTreeMap<_, _> = samples
                .iter()
                .map(|(engine, values)| (engine, json!({ "median": median(values), "samples": values })))
                .collect();
            json!({ "workload": name, "unit": unit.name(), "engines": engines })
        });
        rows.collect()
    }
}

fn cell(samples: &BTreeMap<String, Vec<f64>>, engine: &str, base: &str) -> String {
    let Some(value) = samples.get(engine).and_then(|values| median(values)) else { return "-".to_owned() };
    match samples.get(base).and_then(|values| median(values)).filter(|base| *base > 0.0) {
        Some(base) => format!("{} ({:.2})", short(value), value / base),
        None => short(value),
    }
}

/// About three significant digits.
fn short(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v => format!("{v:.2}"),
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}
