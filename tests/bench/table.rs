//! The results as a table.

/// The values of one measurement.
#[derive(Clone)]
pub struct Series {
    name: String,
    unit: &'static str,
    goal: &'static str,
    /// Sorted.
    values: Vec<f64>,
    /// With half the CPUs.
    halved: Vec<f64>,
}

impl Series {
    pub fn new(name: &str, unit: &'static str, goal: &'static str, mut values: Vec<f64>) -> Series {
        values.sort_by(f64::total_cmp);
        Series { name: name.into(), unit, goal, values, halved: vec![] }
    }

    /// Adds what was measured with half the CPUs.
    pub fn halved(mut self, mut values: Vec<f64>) -> Series {
        values.sort_by(f64::total_cmp);
        self.halved = values;
        self
    }

    fn median(&self) -> Option<f64> {
        median(&self.values)
    }
}

fn median(sorted: &[f64]) -> Option<f64> {
    sorted.get(sorted.len() / 2).copied()
}

/// How many times larger the median of `of` is than that of `to`.
pub fn ratio(of: &Series, to: &Series) -> String {
    match (of.median(), to.median()) {
        (Some(of), Some(to)) => format!("{:.1} times ({of:.2} s and {to:.2} s)", of / to),
        _ => "not measured in this run".into(),
    }
}

/// The table in Markdown. A dash stands for what was not measured.
pub fn render(table: &[Series]) -> String {
    let mut text = String::from("| | goal | minimum | median | maximum | runs | half the CPUs |\n|---|---|---|---|---|---|---|\n");
    for series in table {
        let cell = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.2}"));
        let values = [series.values.first().copied(), series.median(), series.values.last().copied()].map(cell).join(" | ");
        text += &format!(
            "| {}, {} | {} | {values} | {} | {} |\n",
            series.name,
            series.unit,
            series.goal,
            series.values.len(),
            cell(median(&series.halved))
        );
    }
    text
}
