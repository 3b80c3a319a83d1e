//! Report of a benchmark: samples, their medians, the tables and the JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::load::{Load, Running};

/// The unit of a row.
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

/// The goal of a median.
#[derive(Debug, Clone, Copy)]
pub enum Goal {
    /// At most this fraction of another engine's median.
    Ratio(&'static str, f64),
    /// At most this much more than another engine's median, in the row's unit.
    More(&'static str, f64),
    /// At most this much, in the row's unit.
    Below(f64),
}

/// All samples of all rows, for each load; rows in the order in which they were added.
#[derive(Default)]
pub struct Samples {
    tables: Vec<Table>,
    load: Option<Load>,
}

/// The rows measured under one load.
struct Table {
    load: Load,
    rows: Vec<Row>,
}

/// A row's name, its unit, and each engine's samples.
type Row = (String, Unit, BTreeMap<String, Vec<f64>>);

/// The engine that mount ratios refer to.
pub const BASE: &str = "overlayfs";
const LABEL: usize = 20;
const CELL: usize = 15;

impl Samples {
    /// Measures by `round`, under each load in turn. The first round warms the disk caches and is discarded.
    pub fn of_rounds(
        rounds: usize,
        loads: &[Load],
        mut round: impl FnMut(&mut Samples) -> Result<(), String>,
    ) -> Result<Samples, String> {
        let mut samples = Samples::default();
        for number in 0..=rounds {
            eprintln!("round {number} of {rounds}");
            if number == 1 {
                samples = Samples::default();
            }
            for load in loads {
                let _running = samples.start_load(*load);
                round(&mut samples)?;
            }
        }
        Ok(samples)
    }

    /// Starts a load: samples added from here on belong to it, until another is started.
    pub fn start_load(&mut self, load: Load) -> Running {
        self.load = Some(load);
        load.start()
    }

    fn rows(&mut self) -> &mut Vec<Row> {
        let load = self.load.unwrap_or(Load::Quiet);
        let at = self.tables.iter().position(|table| table.load == load).unwrap_or_else(|| {
            self.tables.push(Table { load, rows: Vec::new() });
            self.tables.len() - 1
        });
        &mut self.tables[at].rows
    }

    /// Adds a row, even if no engine ever fills it. Returns its index.
    pub fn row(&mut self, row: &str, unit: Unit) -> usize {
        let rows = self.rows();
        rows.iter().position(|(name, ..)| name == row).unwrap_or_else(|| {
            rows.push((row.to_owned(), unit, BTreeMap::new()));
            rows.len() - 1
        })
    }

    /// Adds a sample.
    pub fn add(&mut self, row: &str, unit: Unit, engine: &str, value: f64) {
        let at = self.row(row, unit);
        self.rows()[at].2.entry(engine.to_owned()).or_default().push(value);
    }

    /// Prints the tables of medians, with ratios to the engine `base`; for a busy machine also the worst samples, with
    /// ratios to the median on a quiet one.
    pub fn print(&self, engines: &[String], base: &str) {
        let quiet = self.tables.iter().find(|table| table.load == Load::Quiet);
        for table in &self.tables {
            let corner = format!("{} (ratio)", table.load.name());
            table.print(&corner, engines, |row, engine| {
                let of = |engine: &str| row.2.get(engine).and_then(|values| median(values));
                (of(engine), of(base))
            });
            if table.load == Load::Busy {
                table.print("busy, worst", engines, |row, engine| {
                    let same = quiet.and_then(|quiet| quiet.rows.iter().find(|other| other.0 == row.0));
                    let quiet = same.and_then(|row| row.2.get(engine)).and_then(|values| median(values));
                    (row.2.get(engine).and_then(|values| values.iter().copied().reduce(f64::max)), quiet)
                });
            }
        }
        println!("\nMedians; in parentheses the ratio to {base}, of the worst that to the same engine's quiet median.");
    }

    /// Prints one line for each goal that there are figures for, on a quiet machine.
    pub fn print_goals(&self, engine: &str, goals: &[(&str, Goal)]) {
        let Some(quiet) = self.tables.iter().find(|table| table.load == Load::Quiet) else { return };
        goals.iter().for_each(|(row, goal)| quiet.print_goal(engine, row, *goal));
    }

    /// Every sample and median, as JSON.
    pub fn json(&self) -> Value {
        let rows = self.tables.iter().flat_map(|table| table.rows.iter().map(|row| (table.load.name(), row)));
        let rows = rows.map(|(load, (name, unit, samples))| {
            let engines: BTreeMap<_, _> = samples
                .iter()
                .map(|(engine, values)| (engine, json!({ "median": median(values), "samples": values })))
                .collect();
            json!({ "workload": name, "load": load, "unit": unit.name(), "engines": engines })
        });
        rows.collect()
    }
}

impl Table {
    /// Prints tables of as many engines as fit in 100 columns. `figures` returns the value of a cell, and the divisor
    /// of its ratio.
    fn print(&self, corner: &str, engines: &[String], figures: impl Fn(&Row, &str) -> (Option<f64>, Option<f64>)) {
        for block in engines.chunks((100 - LABEL - 8) / CELL) {
            print!("\n{corner:LABEL$}{:>8}", "unit");
            block.iter().for_each(|engine| print!("{:>CELL$}", engine.chars().take(CELL - 1).collect::<String>()));
            println!();
            for row in &self.rows {
                print!("{:LABEL$}{:>8}", row.0, row.1.name());
                block.iter().for_each(|engine| print!("{:>CELL$}", cell(figures(row, engine))));
                println!();
            }
        }
    }

    fn print_goal(&self, engine: &str, row: &str, goal: Goal) {
        let Some((name, unit, samples)) = self.rows.iter().find(|(name, ..)| name == row) else { return };
        let of = |engine: &str| samples.get(engine).and_then(|values| median(values));
        let (figure, limit, output) = match goal {
            Goal::Ratio(base, limit) => (of(engine).zip(of(base)).map(|(a, b)| a / b), limit, format!(" of {base}")),
            Goal::More(base, limit) => {
                let more = of(engine).zip(of(base)).map(|(a, b)| a - b);
                (more, limit, format!(" {} more than {base}", unit.name()))
            }
            Goal::Below(limit) => (of(engine), limit, format!(" {}", unit.name())),
        };
        let Some(figure) = figure else { return };
        let verdict = if figure <= limit { "met" } else { "MISSED" };
        println!("goal {verdict}: {engine}, {name}: {}{output}, at most {limit}", format_value(figure));
    }
}

fn cell((value, base): (Option<f64>, Option<f64>)) -> String {
    match (value, base.filter(|base| *base > 0.0)) {
        (Some(value), Some(base)) => format!("{} ({:.2})", format_value(value), value / base),
        (Some(value), None) => format_value(value),
        (None, _) => "-".to_owned(),
    }
}

/// Formats about three significant digits.
fn format_value(value: f64) -> String {
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
