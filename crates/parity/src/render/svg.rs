//! Small plots as inline SVG: axes, points, lines, bars.
//!
//! Written by hand and not with `plotters`: its SVG backend writes fixed colours and font sizes, while these plots take
//! both from the page's style sheet (a light and a dark scheme, larger type on narrow screens) and carry tooltips. What is
//! needed of a plotting library is 200 lines.

use std::fmt::Write;

const WIDTH: f64 = 520.0;
const HEIGHT: f64 = 300.0;
const LEFT: f64 = 66.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 52.0;
/// Height of a line of text on narrow screens, where type is largest.
const LINE: f64 = 16.0;
/// Width that a digit needs there.
const DIGIT: f64 = 9.0;

/// A colour of the page's style sheet, as the class that sets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Color {
    Implementation,
    Conversion,
    Total,
    Wrong,
    Neutral,
}

impl Color {
    /// Name of the CSS variable.
    fn variable(self) -> &'static str {
        match self {
            Self::Implementation => "var(--implementation)",
            Self::Conversion => "var(--conversion)",
            Self::Total => "var(--total)",
            Self::Wrong => "var(--wrong)",
            Self::Neutral => "var(--soft)",
        }
    }
}

/// The scale of an axis.
#[derive(Clone, Copy, Debug)]
pub(super) enum Scale {
    /// Linear, from and to.
    Linear(f64, f64),
    /// Logarithmic, lowest and highest exponent of ten. Smaller values, zero included, are drawn on the border.
    Decades(i32, i32),
}

impl Scale {
    /// Decades that contain all positive values, at least one; `floor` is the lowest exponent that is shown.
    pub(super) fn decades(values: impl Iterator<Item = f64>, floor: i32) -> Self {
        let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            (low, high) = (low.min(value), high.max(value));
        }
        if low > high {
            return Self::Decades(floor, floor + 1);
        }
        let high = (high.log10().ceil() as i32).max(floor + 1);
        let low = (low.log10().floor() as i32).clamp(floor, high - 1);
        Self::Decades(low, high)
    }

    /// Position of a value on the axis, 0 to 1.
    fn position(self, value: f64) -> f64 {
        let share = match self {
            Self::Linear(from, to) => (value - from) / (to - from),
            Self::Decades(from, to) => {
                (value.max(f64::MIN_POSITIVE).log10() - f64::from(from)) / f64::from(to - from)
            }
        };
        if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) }
    }

    fn ticks(self) -> Vec<(f64, String)> {
        match self {
            Self::Linear(from, to) => {
                let raw = (to - from) / 5.0;
                let magnitude = 10f64.powf(raw.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0]
                    .into_iter()
                    .map(|m| m * magnitude)
                    .find(|s| *s >= raw)
                    .unwrap_or(raw);
                let first = (from / step).ceil() as i64;
                let last = (to / step + 1e-9).floor() as i64;
                let decimals = (-step.log10().floor()).max(0.0) as usize;
                (first..=last).map(|i| (i as f64 * step, format!("{:.decimals$}", i as f64 * step))).collect()
            }
            Self::Decades(from, to) => {
                let every = ((to - from) / 7).max(0) + 1;
                (from..=to)
                    .filter(|e| (e - from) % every == 0)
                    .map(|e| (10f64.powi(e), format!("1e{e}")))
                    .collect()
            }
        }
    }
}

/// A plot under construction.
pub(super) struct Plot {
    body: String,
    x: Scale,
    y: Scale,
    legend: Vec<(String, Color)>,
}

impl Plot {
    pub(super) fn new(x: Scale, y: Scale, x_title: &str, y_title: &str) -> Self {
        let mut plot = Self { body: String::new(), x, y, legend: Vec::new() };
        for (value, label) in y.ticks() {
            let at = plot.at_y(value);
            plot.push(format_args!(
                "<line class='grid' x1='{LEFT}' x2='{:.1}' y1='{at:.1}' y2='{at:.1}'/>\
                 <text x='{:.1}' y='{:.1}' text-anchor='end'>{label}</text>",
                WIDTH - RIGHT,
                LEFT - 6.0,
                at + 4.0
            ));
        }
        for (value, label) in x.ticks() {
            let at = plot.at_x(value);
            plot.push(format_args!(
                "<line class='tick' x1='{at:.1}' x2='{at:.1}' y1='{:.1}' y2='{:.1}'/>\
                 <text x='{at:.1}' y='{:.1}' text-anchor='middle'>{label}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 4.0,
                HEIGHT - BOTTOM + LINE + 2.0
            ));
        }
        plot.push(format_args!(
            "<text class='title' x='{:.1}' y='{:.1}' text-anchor='middle'>{}</text>\
             <text class='title' x='14' y='{:.1}' text-anchor='middle' transform='rotate(-90 14 {:.1})'>{}</text>",
            (LEFT + WIDTH - RIGHT) / 2.0,
            HEIGHT - 10.0,
            escape(x_title),
            (TOP + HEIGHT - BOTTOM) / 2.0,
            (TOP + HEIGHT - BOTTOM) / 2.0,
            escape(y_title)
        ));
        plot
    }

    fn push(&mut self, text: std::fmt::Arguments<'_>) {
        self.body.write_fmt(text).expect("writing to a string does not fail");
    }

    fn at_x(&self, value: f64) -> f64 {
        LEFT + self.x.position(value) * (WIDTH - LEFT - RIGHT)
    }

    fn at_y(&self, value: f64) -> f64 {
        HEIGHT - BOTTOM - self.y.position(value) * (HEIGHT - TOP - BOTTOM)
    }

    /// Adds an entry to the legend below the plot.
    pub(super) fn legend(&mut self, name: &str, color: Color) {
        self.legend.push((name.to_owned(), color));
    }

    /// Draws a line through points, in their order.
    pub(super) fn line(&mut self, points: impl Iterator<Item = (f64, f64)>, color: Color) {
        let mut path = String::new();
        for (index, (x, y)) in points.enumerate() {
            let command = if index == 0 { 'M' } else { 'L' };
            write!(path, "{command}{:.1} {:.1}", self.at_x(x), self.at_y(y)).expect("a string");
        }
        self.push(format_args!(
            "<path d='{path}' fill='none' style='stroke:{}' stroke-width='1.4'/>",
            color.variable()
        ));
    }

    /// Draws a dot with a tooltip.
    pub(super) fn dot(&mut self, x: f64, y: f64, radius: f64, color: Color, tooltip: &str) {
        let (x, y) = (self.at_x(x), self.at_y(y));
        self.push(format_args!(
            "<circle cx='{x:.1}' cy='{y:.1}' r='{radius:.1}' style='fill:{}' fill-opacity='.8'><title>{}</title></circle>",
            color.variable(),
            escape(tooltip)
        ));
    }

    /// Draws a bar from the bottom, between two values of x, with a tooltip.
    pub(super) fn bar(&mut self, from: f64, to: f64, y: f64, color: Color, tooltip: &str) {
        let (left, right, top) = (self.at_x(from), self.at_x(to), self.at_y(y));
        let bottom = HEIGHT - BOTTOM;
        self.push(format_args!(
            "<rect x='{left:.1}' y='{top:.1}' width='{:.1}' height='{:.1}' style='fill:{}' fill-opacity='.85'><title>{}</title></rect>",
            (right - left - 0.6).max(0.5),
            (bottom - top).max(0.0),
            color.variable(),
            escape(tooltip)
        ));
    }

    /// Divides the plot into consecutive segments that begin at these values of x, and numbers them from 1 in the margin
    /// above the plot, where no curve is. A number without room is left out.
    pub(super) fn segments(&mut self, starts: &[f64]) {
        let mut free_from = 0.0;
        for (index, &start) in starts.iter().enumerate() {
            let (left, right) =
                (self.at_x(start), starts.get(index + 1).map_or(WIDTH - RIGHT, |x| self.at_x(*x)));
            if index > 0 {
                self.push(format_args!(
                    "<line class='divider' x1='{left:.1}' x2='{left:.1}' y1='{TOP}' y2='{:.1}'/>",
                    HEIGHT - BOTTOM
                ));
            }
            let number = (index + 1).to_string();
            let (middle, half) = ((left + right) / 2.0, DIGIT * number.len() as f64 / 2.0);
            if middle - half >= free_from {
                self.push(format_args!(
                    "<text x='{middle:.1}' y='{:.1}' text-anchor='middle'>{number}</text>",
                    TOP - 8.0
                ));
                free_from = middle + half + 2.0;
            }
        }
    }

    /// Draws a dashed line across the plot.
    pub(super) fn limit(&mut self, y: f64, color: Color) {
        let at = self.at_y(y);
        self.push(format_args!(
            "<line x1='{LEFT}' x2='{:.1}' y1='{at:.1}' y2='{at:.1}' style='stroke:{}' stroke-dasharray='5 4'/>",
            WIDTH - RIGHT,
            color.variable()
        ));
    }

    /// The finished figure with its caption.
    pub(super) fn finish(self, caption: &str) -> String {
        let mut out = format!(
            "<figure><svg viewBox='0 0 {WIDTH} {HEIGHT}' role='img' aria-label='{}'>{}<rect class='frame' x='{LEFT}' \
             y='{TOP}' width='{}' height='{}'/></svg><figcaption>",
            escape(caption),
            self.body,
            WIDTH - LEFT - RIGHT,
            HEIGHT - TOP - BOTTOM
        );
        for (name, color) in &self.legend {
            out.push_str(&format!(
                "<span class='key'><i style='background:{}'></i>{}</span>",
                color.variable(),
                escape(name)
            ));
        }
        out.push_str(&format!("<p>{}</p></figcaption></figure>", escape(caption)));
        out
    }
}

/// Escapes text for HTML and attributes.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('\'', "&#39;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decades_hold_the_values() {
        assert!(matches!(Scale::decades([2e-7, 0.3].into_iter(), -14), Scale::Decades(-7, 0)));
        assert!(matches!(Scale::decades([0.0].into_iter(), -14), Scale::Decades(-14, -13)));
        assert!(matches!(Scale::decades([1e-30, 1.0].into_iter(), -14), Scale::Decades(-14, 0)));
        assert_eq!(Scale::Decades(-4, 0).position(1e-2), 0.5);
        assert_eq!(Scale::Decades(-4, 0).position(0.0), 0.0);
        assert_eq!(Scale::Linear(0.0, 1.0).position(f64::NAN), 0.0);
    }

    #[test]
    fn linear_ticks_are_round() {
        let labels: Vec<String> =
            Scale::Linear(0.0, 1.0).ticks().into_iter().map(|(_, label)| label).collect();
        assert_eq!(labels, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
    }

    #[test]
    fn segment_numbers_do_not_overlap() {
        let mut plot = Plot::new(Scale::Linear(0.0, 100.0), Scale::Linear(0.0, 1.0), "x", "y");
        let before = plot.body.matches("<text").count();
        plot.segments(&[0.0, 50.0, 50.5, 51.0]);
        let after = plot.body.matches("<text").count();
        assert_eq!(after - before, 3, "the third segment is too narrow beside the second");
    }

    #[test]
    fn names_cannot_break_out() {
        let mut plot = Plot::new(Scale::Linear(0.0, 1.0), Scale::Linear(0.0, 1.0), "x", "y");
        plot.dot(0.5, 0.5, 2.0, Color::Wrong, "</title><script>'\"");
        let text = plot.finish("a < b");
        assert!(!text.contains("<script>") && text.contains("&lt;script&gt;") && text.contains("a &lt; b"));
    }
}
