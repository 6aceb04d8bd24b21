//! Draws a boot: a bar for each milestone, from when work on it could begin until it was reached.

use crate::start::Start;

const WIDTH: f64 = 900.0;
const LEFT: f64 = 170.0;
const ROW: f64 = 26.0;

/// The milestone that must be reached before work on `stage` can begin.
fn begins_after(stage: &str) -> Option<&'static str> {
    match stage {
        "containerd" => Some("store"),
        "dockerd" | "docker-ready" | "kubelet" => Some("containerd"),
        "api-server" => Some("kubelet"),
        "pods" => Some("api-server"),
        "dns" => Some("pods"),
        "kubernetes-ready" => Some("dns"),
        _ => None,
    }
}

/// Returns an SVG that is readable on light and dark pages.
pub fn draw(start: &Start) -> String {
    let end = start.timeline.last().map_or(1.0, |(at, _)| at.max(1.0));
    let x = |seconds: f64| LEFT + seconds / end * (WIDTH - LEFT - 70.0);
    let rows = start.timeline.len() as f64;
    let height = ROW * rows + 44.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"13\">\n<rect width=\"100%\" height=\"100%\" rx=\"6\" fill=\"#f6f8fa\"/>\n"
    );
    for second in 0..=end.ceil() as u32 {
        let at = x(f64::from(second));
        svg += &format!(
            "<line x1=\"{at:.1}\" y1=\"8\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#d0d7de\"/><text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#57606a\">{second} s</text>\n",
            height - 26.0,
            height - 10.0
        );
    }
    for (row, (at, stage)) in start.timeline.iter().enumerate() {
        let from = begins_after(stage).and_then(|name| start.timeline.iter().find(|(_, have)| have == name)).map_or(0.0, |(at, _)| *at);
        let (top, color) = (10.0 + ROW * row as f64, if stage.ends_with("-ready") { "#1a7f37" } else { "#0969da" });
        svg += &format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#1f2328\">{stage}</text><rect x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"18\" rx=\"3\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{:.1}\" fill=\"#1f2328\">{at:.2} s</text>\n",
            LEFT - 10.0,
            top + 13.5,
            x(from),
            (x(*at) - x(from)).max(3.0),
            x(*at) + 6.0,
            top + 13.5
        );
    }
    svg + "</svg>\n"
}
