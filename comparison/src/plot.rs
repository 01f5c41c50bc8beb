//! The plots, as SVG that is readable on a light and on a dark page.

use std::fmt::Write as _;

use crate::contender::Which;
use crate::latency::{PERCENTILES, metric};
use crate::plan::Workload;
use crate::processes;
use crate::report::{rate, span};
use crate::results::Results;
use crate::workload::Size;

/// The file name of the plot of the rates at a size.
pub(crate) fn rates_file(group: &str) -> String {
    format!("rates-{}.svg", group.replace(' ', "-"))
}

/// The file name of the plot of the latencies at a size.
pub(crate) fn latency_file(group: &str) -> String {
    format!("latency-{}.svg", group.replace(' ', "-"))
}

/// Every plot for which there are figures, with its file name.
pub(crate) fn all(results: &Results) -> Vec<(String, String)> {
    let mut plots = Vec::new();
    for Size { name, .. } in Size::ALL {
        let svg = rates(results, name, &Workload::RATES.map(|workload| workload.name().to_owned()));
        plots.extend(svg.map(|svg| (rates_file(name), svg)));
        plots.extend(latencies(results, name).map(|svg| (latency_file(name), svg)));
    }
    let svg = rates(results, processes::GROUP, &processes::metrics());
    plots.extend(svg.map(|svg| (rates_file(processes::GROUP), svg)));
    plots
}

/// Colours that are distinct also with colour blindness, and that contrast with white and black.
fn colour(which: Which) -> &'static str {
    match which {
        Which::Keepwarm => "#d55e00",
        Which::Lmdb => "#0072b2",
        Which::Sled => "#56b4e9",
        Which::Redb => "#009e73",
        Which::Moka => "#cc79a7",
        Which::QuickCache => "#b8860b",
        Which::HashMap => "#888888",
        Which::Sqlite => "#7b5ea7",
        Which::Nothing => "#bbbbbb",
    }
}

const WIDTH: f64 = 800.0;
const LINE: f64 = 16.0;

/// A drawing under construction.
struct Svg(String);

impl Svg {
    fn new() -> Self {
        Self(String::new())
    }

    fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let text = text.replace('&', "&amp;").replace('<', "&lt;");
        let _ = writeln!(self.0, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{text}</text>");
    }

    fn bar(&mut self, x: f64, y: f64, width: f64, colour: &str) {
        let height = LINE - 4.0;
        let _ = writeln!(
            self.0,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height}\" \
             fill=\"{colour}\"/>"
        );
    }

    fn line(&mut self, points: &[(f64, f64)], colour: &str, width: f64) {
        let points: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.0,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" \
             stroke-width=\"{width}\"/>",
            points.join(" ")
        );
    }

    fn finish(self, height: f64) -> String {
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height:.0}\" \
             width=\"{WIDTH}\" height=\"{height:.0}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n\
             <style>\n\
             text {{ fill: #222 }}\n\
             .end {{ text-anchor: end }}\n\
             .middle {{ text-anchor: middle }}\n\
             .title {{ font-weight: bold }}\n\
             @media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} }}\n\
             </style>\n{}</svg>\n",
            self.0
        )
    }
}

/// A panel of bars for each of the rates `names`, two panels per row.
fn rates(results: &Results, group: &str, names: &[String]) -> Option<String> {
    let contenders: Vec<Which> =
        results.contenders(group).into_iter().filter(|which| *which != Which::Nothing).collect();
    let measured =
        |name: &&String| contenders.iter().any(|c| results.median(group, name, *c).is_some());
    let names: Vec<&String> = names.iter().filter(measured).collect();
    if names.is_empty() {
        return None;
    }
    let (panel_width, panel_height) = (WIDTH / 2.0, LINE * (contenders.len() as f64 + 2.0));
    let (titles, numbers) = (90.0, 60.0);
    let mut svg = Svg::new();
    for (n, name) in names.iter().enumerate() {
        let (left, top) = ((n % 2) as f64 * panel_width, (n / 2) as f64 * panel_height + LINE);
        svg.text(left + titles, top, "title", &format!("{name}, {group}"));
        let figures = contenders.iter().map(|which| results.median(group, name, *which));
        let most = figures.clone().flatten().fold(0.0, f64::max);
        for (line, (which, figure)) in contenders.iter().zip(figures).enumerate() {
            let Some(figure) = figure else { continue };
            let y = top + LINE * (line as f64 + 1.0);
            let width = (panel_width - titles - numbers) * figure / most;
            svg.text(left + titles - 6.0, y, "end", which.name());
            svg.bar(left + titles, y - LINE * 0.65, width, colour(*which));
            svg.text(left + titles + width + 4.0, y, "", &rate(figure));
        }
    }
    Some(svg.finish(names.len().div_ceil(2) as f64 * panel_height))
}

/// A panel of lines for get and one for set: percentiles on the x axis, time on the y axis with a
/// logarithmic scale.
fn latencies(results: &Results, group: &str) -> Option<String> {
    let (top, bottom, margin) = (LINE * 2.0, 320.0, 50.0);
    let panel_width = WIDTH / 2.0;
    let (least, most) = (-8.0, -1.0);
    let up = |seconds: f64| {
        bottom - (seconds.log10().clamp(least, most) - least) / (most - least) * (bottom - top)
    };
    let mut svg = Svg::new();
    let mut drawn: Vec<Which> = Vec::new();
    for (panel, call) in ["get", "set"].into_iter().enumerate() {
        let left = panel as f64 * panel_width + margin;
        let right = (panel + 1) as f64 * panel_width - 20.0;
        let at = |n: usize| left + (right - left) * n as f64 / (PERCENTILES.len() - 1) as f64;
        svg.text(left, LINE, "title", &format!("{call}, {group}"));
        for power in least as i32..=most as i32 {
            let seconds = 10f64.powi(power);
            svg.line(&[(left, up(seconds)), (right, up(seconds))], "#8884", 1.0);
            let label = span(seconds).replace(".00", "").replace(".0", "");
            svg.text(left - 4.0, up(seconds) + 4.0, "end", &label);
        }
        for (n, (_, name)) in PERCENTILES.iter().enumerate() {
            svg.text(at(n), bottom + LINE, "middle", name);
        }
        for which in results.contenders(group) {
            let figure = |name| results.median(group, &metric(call, name), which);
            let points: Vec<(f64, f64)> = PERCENTILES
                .iter()
                .enumerate()
                .filter_map(|(n, (_, name))| Some((at(n), up(figure(name)?))))
                .collect();
            if !points.is_empty() {
                svg.line(&points, colour(which), if which == Which::Keepwarm { 3.0 } else { 1.5 });
                if !drawn.contains(&which) {
                    drawn.push(which);
                }
            }
        }
    }
    for (n, which) in drawn.iter().enumerate() {
        let x = margin + n as f64 * (WIDTH - margin) / drawn.len() as f64;
        svg.bar(x, bottom + LINE * 2.0 - LINE * 0.65, 12.0, colour(*which));
        svg.text(x + 16.0, bottom + LINE * 2.0, "", which.name());
    }
    (!drawn.is_empty()).then(|| svg.finish(bottom + LINE * 3.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_proportional_and_labelled() {
        let mut results = Results::new(1, 1.0);
        let name = Workload::GetUniform.name();
        results.add("100 B", name, Which::Keepwarm, 2e6);
        results.add("100 B", name, Which::Lmdb, 1e6);
        let names = [name.to_owned()];
        let svg = rates(&results, "100 B", &names).unwrap();
        assert!(svg.contains("width=\"250.0\"") && svg.contains("width=\"125.0\""), "{svg}");
        assert!(svg.contains(">keepwarm<") && svg.contains(">2.00 M<"), "{svg}");
        assert!(rates(&results, "1 KiB", &names).is_none(), "a size without figures has no plot");
    }

    #[test]
    fn latencies_have_a_line_per_contender() {
        let mut results = Results::new(1, 1.0);
        for (_, name) in PERCENTILES {
            results.add("100 B", &metric("get", name), Which::Keepwarm, 1e-6);
            results.add("100 B", &metric("get", name), Which::Moka, 2e-6);
        }
        let svg = latencies(&results, "100 B").unwrap();
        assert_eq!(svg.matches(colour(Which::Keepwarm)).count(), 2, "a line and its legend: {svg}");
        assert_eq!(svg.matches("<polyline").count(), 2 + 16, "two lines and the scales: {svg}");
    }
}
